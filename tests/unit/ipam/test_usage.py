from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from agent.errors import PoolExhausted
from ipam.allocate import allocate, release, settle
from ipam.ledger import Ledger
from ipam.model import Allocation, NotHeld, Owner, Policy, Pool, block_of
from ipam.usage import Standing, contradictions, explain, orphans, usage

NETWORK = IPv4Network("10.0.0.0/24")
SINGLES = Pool(NETWORK, (IPv4Network("10.0.0.0/29"),), name="singles")
PREFIXES = Pool(NETWORK, length=28, name="prefixes")


def owner(name: str, uid: str = "uid") -> Owner:
    return Owner("shoot", "garden", name, uid)


def given(ledger: Ledger, pool: Pool, *names: str, now: float = 0.0) -> Ledger:
    for name in names:
        ledger, _ = allocate(ledger, Policy((pool,)), owner(name), now)
    return ledger


def text(ledger: Ledger, name: str) -> str:
    held = ledger.get(owner(name))
    assert held is not None
    return " ".join(map(str, held.blocks))


def test_a_pool_that_is_cut_differently_gives_nothing_that_overlaps_what_it_gave_before() -> None:
    ledger = given(Ledger(), SINGLES, "a", "b")  # .8 and .9
    ledger = given(ledger, PREFIXES, "c", "d")
    assert text(ledger, "c") == "10.0.0.16/28"
    ledger = given(ledger, SINGLES, "e", *[f"n{n}" for n in range(6)])
    assert text(ledger, "n5") == "10.0.0.48"  # behind both prefixes
    assert usage(ledger, PREFIXES).orphaned == 2
    assert usage(ledger, SINGLES).orphaned == 32
    assert [str(block) for block, _ in orphans(ledger, [PREFIXES])] == ["10.0.0.8", "10.0.0.9", *TEXTS_OF_SINGLES]
    assert contradictions(ledger) == []


TEXTS_OF_SINGLES = [*(f"10.0.0.{n}" for n in range(10, 16)), "10.0.0.48"]


def test_a_pool_inside_of_what_somebody_holds_gives_nothing() -> None:
    ledger = given(Ledger(), Pool(IPv6Network("fd00::/32"), length=48), "a")
    with pytest.raises(PoolExhausted, match="kept for former pools"):
        given(ledger, Pool(IPv6Network("fd00::/64")), "b")
    assert text(given(ledger, Pool(IPv6Network("fd00::/47"), length=64), "b"), "b") == "fd00:0:1::/64"
    assert text(given(ledger, Pool(IPv6Network("fd00::/32"), length=36), "b"), "b") == "fd00:0:1000::/36"


def test_addresses_out_of_a_block_out_of_a_pool() -> None:
    ledger = given(Ledger(), PREFIXES, "shoot-a", "shoot-b")
    above = ledger.get(owner("shoot-b"))
    assert above is not None
    inner = PREFIXES.out_of(above, reserved=(IPv4Network("10.0.0.16/32"),))
    assert str(inner) == "prefixes/shoot-b (10.0.0.16/28)"
    ledger = given(ledger, inner, "node-1", "node-2")
    assert text(ledger, "node-2") == "10.0.0.18"
    assert contradictions(ledger) == []
    assert (usage(ledger, inner).used, usage(ledger, inner).orphaned) == (2, 0)
    assert (usage(ledger, PREFIXES).used, usage(ledger, PREFIXES).orphaned) == (2, 0)

    policy = Policy((PREFIXES,))
    ledger = release(ledger, policy, owner("shoot-b"), 10.0)
    with pytest.raises(NotHeld, match="does not hold any more"):
        given(ledger, inner, "node-3")
    ledger = settle(ledger, policy, 1000.0)
    assert ledger.get(owner("shoot-b")) is None
    ledger = given(ledger, PREFIXES, "shoot-c")
    assert text(ledger, "shoot-c") == "10.0.0.32/28"  # two nodes are still in the other one
    for name in ("node-1", "node-2"):
        ledger = release(ledger, policy, owner(name), 2000.0)
    ledger = given(ledger, PREFIXES, "shoot-d", now=3000.0)
    assert text(ledger, "shoot-d") == "10.0.0.16/28"
    with pytest.raises(NotHeld):
        PREFIXES.out_of(above_of(ledger))


def above_of(ledger: Ledger) -> Allocation:
    held = release(ledger, Policy((PREFIXES,)), owner("shoot-d"), 4000.0).get(owner("shoot-d"))
    assert held is not None
    return held


def test_every_block_is_counted_once() -> None:
    ledger = given(Ledger(), SINGLES, *"abcdef")
    ledger = release(ledger, Policy((SINGLES,)), owner("b"), 1.0)
    seen = usage(ledger, SINGLES)
    assert (seen.size, seen.used, seen.quarantined, seen.orphaned, seen.free) == (248, 5, 1, 0, 242)
    assert str(seen) == "5 in use, 1 in quarantine"
    assert 0.02 < seen.taken < 0.03


def test_explain_every_kind_of_address() -> None:
    ledger = given(Ledger(), SINGLES, "a", "b")
    ledger = release(ledger, Policy((SINGLES,)), owner("b"), 1.0)
    ledger, _ = allocate(ledger, Policy((Pool(IPv4Network("192.0.2.0/28"), length=29),)), owner("o"), 2.0)
    known = {
        "10.0.0.8": Standing.USED,
        "10.0.0.9": Standing.QUARANTINED,
        "10.0.0.10": Standing.FREE,
        "10.0.0.7": Standing.RESERVED,
        "192.0.2.5": Standing.ORPHAN,
        "192.0.2.9": Standing.FOREIGN,
        "fd00::": Standing.FOREIGN,
    }
    for address, standing in known.items():
        assert explain(ledger, [SINGLES], ip_address(address)).standing is standing
    ((block, allocation),) = explain(ledger, [SINGLES], ip_address("192.0.2.5")).allocations
    assert (str(block), allocation.owner.name) == ("192.0.2.0/29", "o")


def test_contradictions_are_found() -> None:
    def held(name: str, *blocks: str) -> Allocation:
        return Allocation(owner(name), tuple(map(block_of, blocks)), 1, 0.0)

    ledger = Ledger.of(
        [held("a", "10.0.0.0/24"), held("b", "10.0.0.7"), held("c", "10.0.0.0/28"), held("d", "10.0.1.0")], 1
    )
    assert contradictions(ledger) == [
        "10.0.0.0/28 of shoot garden/c (uid) overlaps 10.0.0.0/24 of shoot garden/a (uid)",
        "10.0.0.7 of shoot garden/b (uid) overlaps 10.0.0.0/28 of shoot garden/c (uid)",
    ]
