from ipaddress import IPv4Network, IPv6Network

import pytest

from agent.errors import PoolExhausted, Retry
from ipam.allocate import allocate, release, settle
from ipam.ledger import Ledger
from ipam.model import NotOwner, Order, Owner, Policy, Pool

IPV4 = Pool(IPv4Network("10.0.0.0/29"), (IPv4Network("10.0.0.0/31"),))  # six addresses: .2 to .7
IPV6 = Pool(IPv6Network("fd00::/126"), (IPv6Network("fd00::/128"),))  # three: 1 to 3
DUAL = Policy((IPV4, IPV6))
SINGLE = Policy((IPV4,))


def owner(name: str, uid: str = "uid") -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, uid)


def texts(allocation: object) -> list[str]:
    return [str(block) for block in allocation.blocks]  # type: ignore[attr-defined]


def given_to(ledger: Ledger, policy: Policy, *names: str, now: float = 0.0) -> Ledger:
    for name in names:
        ledger, _ = allocate(ledger, policy, owner(name), now)
    return ledger


def test_the_lowest_free_of_every_pool() -> None:
    ledger, a = allocate(Ledger(), DUAL, owner("a"), 1.0)
    ledger, b = allocate(ledger, DUAL, owner("b"), 2.0)
    assert texts(a) == ["10.0.0.2", "fd00::1"]
    assert texts(b) == ["10.0.0.3", "fd00::2"]
    assert (a.generation, a.since, b.generation, b.since) == (1, 1.0, 2, 2.0)


def test_sticky_and_idempotent() -> None:
    ledger, a = allocate(Ledger(), DUAL, owner("a"), 1.0)
    again, same = allocate(ledger, DUAL, owner("a"), 99.0)
    assert again is ledger
    assert same is a


def test_another_uid_is_another_owner() -> None:
    ledger, old = allocate(Ledger(), DUAL, owner("a", "one"), 1.0)
    ledger, new = allocate(ledger, DUAL, owner("a", "two"), 1.0)
    assert not set(old.blocks) & set(new.blocks)
    ledger = release(ledger, DUAL, owner("a", "one"), 2.0)
    still = ledger.get(owner("a", "two"))
    assert still is not None and not still.resting


def test_release_needs_the_uid() -> None:
    ledger = given_to(Ledger(), DUAL, "a")
    with pytest.raises(NotOwner, match=r"a \(other\) holds nothing; .*a \(uid\) does and keeps it") as caught:
        release(ledger, DUAL, owner("a", "other"), 1.0)
    assert caught.value.retry is Retry.NEVER


def test_release_of_what_nobody_holds_changes_nothing() -> None:
    ledger = given_to(Ledger(), DUAL, "a")
    assert release(ledger, DUAL, owner("b"), 1.0) is ledger
    released = release(ledger, DUAL, owner("a"), 1.0)
    assert release(released, DUAL, owner("a"), 2.0) is released


def test_a_freed_address_rests() -> None:
    ledger = release(given_to(Ledger(), SINGLE, "a"), SINGLE, owner("a"), 1000.0)
    assert texts(allocate(ledger, SINGLE, owner("b"), 1359.9)[1]) == ["10.0.0.3"]
    assert texts(allocate(ledger, SINGLE, owner("b"), 1360.0)[1]) == ["10.0.0.2"]


def test_its_former_owner_gets_it_back_at_once() -> None:
    ledger = release(given_to(Ledger(), DUAL, "a", "b"), DUAL, owner("a"), 1000.0)
    ledger, back = allocate(ledger, DUAL, owner("a"), 1001.0)
    assert texts(back) == ["10.0.0.2", "fd00::1"]
    assert (back.since, back.resting) == (1001.0, False)
    assert settle(ledger, DUAL, 99999.0) is not None
    assert settle(ledger, DUAL, 99999.0).get(owner("a")) == back  # the old quarantine does not end it


def test_an_expired_allocation_rests_from_its_expiry() -> None:
    ledger, a = allocate(Ledger(), DUAL, owner("a"), 0.0, expires=100.0)
    assert settle(ledger, DUAL, 99.9).get(owner("a")) == a
    resting = settle(ledger, DUAL, 200.0).get(owner("a"))
    assert resting is not None
    assert (resting.rests_until, resting.expires) == (460.0, None)
    assert len(settle(ledger, DUAL, 459.9)) == 1
    assert len(settle(ledger, DUAL, 460.0)) == 0
    assert len(settle(settle(ledger, DUAL, 200.0), DUAL, 460.0)) == 0


def test_renewal_moves_the_expiry_and_nothing_else() -> None:
    ledger, first = allocate(Ledger(), DUAL, owner("a"), 0.0, expires=100.0)
    ledger, renewed = allocate(ledger, DUAL, owner("a"), 50.0, expires=150.0)
    assert (renewed.blocks, renewed.since, renewed.expires) == (first.blocks, 0.0, 150.0)
    assert renewed.generation > first.generation
    assert settle(ledger, DUAL, 149.0).get(owner("a")) == renewed
    ledger, forever = allocate(ledger, DUAL, owner("a"), 60.0)
    assert forever.expires is None
    assert settle(ledger, DUAL, 1e9).get(owner("a")) == forever


def test_an_expiry_in_the_past_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot expire at 5"):
        allocate(Ledger(), DUAL, owner("a"), 5.0, expires=5.0)


def test_dual_stack_is_all_or_nothing() -> None:
    ledger = given_to(Ledger(), DUAL, "a", "b", "c")
    with pytest.raises(
        PoolExhausted, match=r"no free block in pool fd00::/126: of 3 are 3 in use.*those who have one keep it"
    ) as e:
        allocate(ledger, DUAL, owner("d"), 1.0)
    assert e.value.retry is Retry.NEVER
    assert ledger.used_in(IPV4) == 3
    assert allocate(ledger, DUAL, owner("a"), 1.0)[0] is ledger


def test_exhaustion_says_when_to_come_back() -> None:
    ledger = release(given_to(Ledger(), SINGLE, *"abcdef"), SINGLE, owner("a"), 100.0)
    with pytest.raises(PoolExhausted, match="the next quarantine or expiry ends in 60 s"):
        allocate(ledger, SINGLE, owner("g"), 400.0)
    assert texts(allocate(ledger, SINGLE, owner("g"), 460.0)[1]) == ["10.0.0.2"]


def test_a_new_pool_gives_a_block_to_those_who_have_none_of_it() -> None:
    ledger = given_to(Ledger(), SINGLE, "a")
    ledger, both = allocate(ledger, DUAL, owner("a"), 1.0)
    assert texts(both) == ["10.0.0.2", "fd00::1"]
    assert both.since == 0.0


def test_blocks_of_a_pool_that_is_gone_stay_reserved_for_their_owner() -> None:
    ledger = given_to(Ledger(), SINGLE, "a")
    moved = Policy((Pool(IPv4Network("10.0.1.0/24")),))
    ledger, allocation = allocate(ledger, moved, owner("a"), 1.0)
    assert texts(allocation) == ["10.0.0.2", "10.0.1.0"]
    assert [str(address) for address in moved.addresses(allocation)] == ["10.0.1.0"]
    grown = Policy((Pool(IPv4Network("10.0.0.0/28"), (IPv4Network("10.0.0.0/31"),)),))
    assert texts(allocate(ledger, grown, owner("b"), 1.0)[1]) == ["10.0.0.3"]


def test_settle_without_anything_due_is_the_same_ledger() -> None:
    ledger = given_to(Ledger(), DUAL, "a", "b")
    assert settle(ledger, DUAL, 1e9) is ledger


def test_without_quarantine_an_address_is_free_at_once() -> None:
    policy = Policy((IPV4,), quarantine_s=0.0)
    ledger = release(given_to(Ledger(), policy, "a"), policy, owner("a"), 10.0)
    assert texts(allocate(ledger, policy, owner("b"), 10.0)[1]) == ["10.0.0.2"]


def test_next_fit_goes_on_behind_the_last_one_given_and_starts_again_at_the_end() -> None:
    policy = Policy((Pool(IPV4.network, IPV4.reserved, order=Order.NEXT),), quarantine_s=0.0)
    ledger = given_to(Ledger(), policy, *"abc")
    ledger = release(ledger, policy, owner("a"), 1.0)
    ledger, d = allocate(ledger, policy, owner("d"), 1.0)
    assert texts(d) == ["10.0.0.5"]
    rebuilt = Ledger.of(ledger, ledger.generation)
    for known in (ledger, rebuilt):  # it is known from the entries alone
        after, _ = allocate(known, policy, owner("b"), 2.0, expires=99.0)  # a renewal is no new block
        after, _ = allocate(after, policy, owner("e"), 2.0)
        after, f = allocate(after, policy, owner("f"), 3.0)
        assert texts(f) == ["10.0.0.7"]
        after, g = allocate(after, policy, owner("g"), 4.0)
        assert texts(g) == ["10.0.0.2"]
        with pytest.raises(PoolExhausted):
            allocate(after, policy, owner("h"), 5.0)
