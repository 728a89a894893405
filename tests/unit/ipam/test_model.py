from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.ledger import Ledger
from ipam.model import Allocation, Block, InconsistentLedger, Owner, Policy, Pool, block_of


def owner(name: str, uid: str = "u") -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, uid)


def held(name: str, *addresses: str, generation: int = 1) -> Allocation:
    return Allocation(owner(name), tuple(map(block_of, addresses)), generation, 0.0)


@pytest.mark.parametrize(
    "text", ["192.168.128.8", "0.0.0.0", "fd8f:6d53:b97a:1::7", "::", "10.1.0.16/28", "fd00::/64", "0.0.0.0/0"]
)
def test_a_block_and_its_text(text: str) -> None:
    block = block_of(text)
    assert str(block) == text
    assert block.network == ip_network(text)
    assert block.address == ip_network(text).network_address
    assert Block.of(ip_network(text)) == block


@pytest.mark.parametrize("text", ["10.0.0.1/28", "10.0.0", "x", "", "fd00::1/64", "10.0.0.01"])
def test_only_canonical_text_is_a_block(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        block_of(text)


def test_a_tunnel_network_keeps_its_servers_addresses() -> None:
    ipv4 = Pool.tunnel(IPv4Network("192.168.128.0/17"))
    assert ipv4.reserved == (IPv4Network("192.168.128.0/29"), IPv4Network("192.168.255.255/32"))
    assert ipv4.size == 32768 - 8 - 1
    ipv6 = Pool.tunnel(IPv6Network("fd8f:6d53:b97a:1::/96"), servers=1)
    assert ipv6.reserved == (IPv6Network("fd8f:6d53:b97a:1::/127"),)
    assert Ledger().lowest_free(ipv4) == block_of("192.168.128.8")
    assert Ledger().lowest_free(ipv6) == block_of("fd8f:6d53:b97a:1::2")


def test_a_pool_of_prefixes_leaves_out_every_block_that_touches_a_reserved_range() -> None:
    pool = Pool(IPv4Network("10.1.0.0/24"), (IPv4Network("10.1.0.5/32"), IPv4Network("10.1.0.16/30")), length=28)
    assert Ledger().lowest_free(pool) == block_of("10.1.0.32/28")
    assert pool.size == 14
    assert str(pool) == "10.1.0.0/24 in blocks of /28"


@settings(deadline=None)
@given(st.ip_addresses(), st.sampled_from(["", "0", "x", ":", "_", " ", "١", ".1", ":1", "%a"]), st.integers(0, 40))
def test_addresses_are_read_as_the_standard_library_does(address: object, noise: str, at: int) -> None:
    text = str(address)
    broken = text[:at] + noise + text[at:]
    for each in (text, broken):
        try:
            expected = ip_address(each) if "%" not in each else None
        except ValueError:
            expected = None
        if expected is None:
            with pytest.raises(ValueError, match=r"."):
                block_of(each)
        else:
            assert block_of(each).address == expected


@settings(deadline=None)
@given(
    st.integers(0, 255), st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=6), st.integers(26, 32)
)
def test_ranges_are_what_no_reserved_network_touches(base: int, reserved: list[tuple[int, int]], length: int) -> None:
    network = IPv4Network((base << 24, 26))
    ranges = tuple(IPv4Network((base << 24 | offset, prefix), strict=False) for offset, prefix in reserved)
    blocks = [n for n in network.subnets(new_prefix=length) if not any(n.overlaps(r) for r in ranges)]
    if not blocks:
        with pytest.raises(ValueError, match="all of it is reserved"):
            Pool(network, ranges, length)
        return
    pool = Pool(network, ranges, length)
    assert [Block(4, length, n).network for start, end in pool.ranges for n in range(start, end)] == blocks
    assert pool.size == len(blocks)
    assert all(pool.covers(Block.of(block)) for block in blocks)
    assert not pool.covers(Block(4, length, pool.ranges[0][0] - (1 << length - 26)))


def test_pools_that_cannot_work() -> None:
    network = IPv4Network("10.0.0.0/24")
    with pytest.raises(ValueError, match="/23 do not fit, /24 to /32 do"):
        Pool(network, length=23)
    with pytest.raises(ValueError, match="another IP version"):
        Pool(network, (IPv6Network("fd00::/64"),))
    with pytest.raises(ValueError, match="all of it is reserved"):
        Pool(network, (IPv4Network("10.0.0.0/8"),))
    with pytest.raises(ValueError, match="too small for 7 servers"):
        Pool.tunnel(IPv4Network("10.0.0.0/30"))


def test_policies_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="at least one pool"):
        Policy(())
    with pytest.raises(ValueError, match="overlap"):
        Policy((Pool(IPv4Network("10.0.0.0/24")), Pool(IPv4Network("10.0.0.128/25"))))
    with pytest.raises(ValueError, match="overlap"):
        Policy((Pool(IPv4Network("10.0.0.0/24")), Pool(IPv4Network("10.0.0.0/24"), length=28)))
    with pytest.raises(ValueError, match="IPv4 addresses written as IPv6"):
        Pool(IPv6Network("::ffff:10.0.0.0/104"))


def test_blocks_of_other_families_and_lengths_are_not_covered() -> None:
    pool = Pool(IPv4Network("0.0.0.0/0"))
    assert pool.covers(block_of("1.2.3.4"))
    assert not pool.covers(block_of("1.2.3.0/24"))
    assert not pool.covers(block_of("::1"))


def test_lowest_free_passes_full_pages_and_reserved_ranges() -> None:
    pool = Pool(IPv4Network("10.0.0.0/15"), (IPv4Network("10.0.0.0/29"), IPv4Network("10.0.64.0/18")))
    full = [Block(4, 32, int(IPv4Address("10.0.0.8")) + n) for n in range(16384 - 8)]
    ledger = Ledger.of([Allocation(owner("all"), tuple(full), 1, 0.0)], 1)
    assert ledger.lowest_free(pool) == block_of("10.0.128.0")
    assert ledger.used_in(pool) == 16384 - 8
    assert ledger.used_in(Pool(IPv6Network("fd00::/96"))) == 0


def test_lowest_free_in_a_large_pool_costs_nothing_for_what_is_not_used() -> None:
    pool = Pool(IPv6Network("fd00::/8"))
    ledger = Ledger.of([held("a", "fd00::"), held("b", "fd00::2"), held("c", "fdff:ffff::")], 1)
    assert ledger.lowest_free(pool) == block_of("fd00::1")
    assert len(ledger.used) == 2
    assert ledger.used_in(pool) == 3


def test_a_full_pool_has_no_free_block() -> None:
    pool = Pool(IPv4Network("10.0.0.0/31"))
    assert Ledger.of([held("a", "10.0.0.0"), held("b", "10.0.0.1")], 1).lowest_free(pool) is None


def test_a_ledger_refuses_contradictions() -> None:
    with pytest.raises(InconsistentLedger, match=r"10\.0\.0\.1 belongs to .*/. \(u\) and to .*/. \(u\)"):
        Ledger.of([held("a", "10.0.0.1"), held("b", "10.0.0.2", "10.0.0.1")], 1)
    with pytest.raises(InconsistentLedger, match=r"10\.0\.0\.1 belongs to .*/a"):
        Ledger.of([held("a", "10.0.0.1", "10.0.0.1")], 1)
    with pytest.raises(InconsistentLedger, match="an owner has two entries"):
        Ledger.of([held("a", "10.0.0.1"), held("a", "10.0.0.2")], 1)
    ledger = Ledger.of([held("a", "10.0.0.1")], 1)
    with pytest.raises(InconsistentLedger, match=r"10\.0\.0\.1 is to go to .*/b"):
        ledger.apply([held("b", "10.0.0.1")], (), 2)


def test_a_transaction_may_exchange_blocks() -> None:
    ledger = Ledger.of([held("a", "10.0.0.1"), held("b", "10.0.0.2"), held("c", "10.0.0.3")], 1)
    after = ledger.apply([held("a", "10.0.0.2"), held("b", "10.0.0.3")], [owner("c")], 2)
    assert {a.owner.name: str(a.blocks[0]) for a in after} == {"a": "10.0.0.2", "b": "10.0.0.3"}
    assert after.lowest_free(Pool(IPv4Network("10.0.0.0/30"))) == block_of("10.0.0.0")
    assert after.used_in(Pool(IPv4Network("10.0.0.0/30"))) == 2
    assert len(ledger) == 3 and len(after) == 2  # the old version is as it was


def test_deadlines_that_were_moved_are_not_due() -> None:
    early = replace(held("a", "10.0.0.1"), expires=10.0)
    ledger = Ledger().apply([early], (), 1).apply([replace(early, generation=2, expires=20.0)], (), 2)
    ledger, due = ledger.pop_due(15.0)
    assert due == []
    ledger, due = ledger.pop_due(20.0)
    assert [a.expires for a in due] == [20.0]
    assert ledger.pop_due(20.0) == (ledger, [])


def test_renewals_do_not_pile_up() -> None:
    ledger = Ledger()
    for generation in range(1, 1000):
        ledger = ledger.apply(
            [replace(held("a", "10.0.0.1"), generation=generation, expires=1e9 + generation)], (), generation
        )
    assert len(ledger.deadlines) < 100
    assert [a.generation for a in ledger.pop_due(2e9)[1]] == [999]


def test_an_allocation_in_the_words_of_its_users() -> None:
    allocation = held("a", "10.0.0.9", "fd00::9")
    assert allocation.addresses == (IPv4Address("10.0.0.9"), IPv6Address("fd00::9"))
    assert allocation.in_pool(Pool(IPv6Network("fd00::/96"))) == block_of("fd00::9")
    assert allocation.in_pool(Pool(IPv6Network("fd01::/96"))) is None
    assert (allocation.resting, allocation.deadline) == (False, None)
    resting = replace(allocation, rests_until=5.0)
    assert (resting.resting, resting.deadline) == (True, 5.0)
