"""What sidecars are refused while nobody can get it, and for how long they are spared."""

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from agent.firewall import AddressRange, Unreachable
from agent.model import IPAddress, IPNetwork, networks
from seed_server.reachable import Carrier
from seed_server.refusals import ABANDONED_S, Refusals

RANGES = networks(["10.250.0.0/16", "100.64.0.0/13", "fd00:10::/64"])
NOW = 100.0


def look(*carriers: Carrier, began: float = NOW) -> Unreachable:
    return Refusals(RANGES, began).look(carriers, NOW)


def down(*prefixes: str, since: float = NOW) -> Carrier:
    return Carrier(networks(prefixes), "node has not answered", since)


def well(*prefixes: str) -> Carrier:
    return Carrier(networks(prefixes))


def ranges(*texts: str) -> tuple[AddressRange, ...]:
    pairs = (text.split("-") for text in texts)
    return tuple((ip_address(first), ip_address(last)) for first, last in pairs)


def test_nothing_is_refused_while_all_is_well() -> None:
    assert look(well("10.250.0.1/32", "100.64.0.0/13", "fd00:10::/64")) == Unreachable()


def test_what_a_lost_client_carries_is_suspended_and_after_a_while_abandoned() -> None:
    lost = ranges("10.250.0.1-10.250.0.1", "100.64.0.0-100.64.0.255", "fd00:10::1-fd00:10::1")
    prefixes = ("10.250.0.1/32", "100.64.0.0/24", "fd00:10::1/128")
    assert look(down(*prefixes)) == Unreachable(suspended=lost)
    assert look(down(*prefixes, since=NOW - ABANDONED_S)) == Unreachable(abandoned=lost)


def test_a_node_that_is_well_inside_the_range_of_a_dead_one_is_reached() -> None:
    found = look(down("10.250.1.0/24"), well("10.250.1.7/32"))
    assert found.suspended == ranges("10.250.1.0-10.250.1.6", "10.250.1.8-10.250.1.255")


def test_one_that_is_well_is_enough_for_what_two_carry() -> None:
    assert look(down("10.250.1.0/24"), well("10.250.1.0/24")) == Unreachable()


def test_neighbours_are_one_range() -> None:
    assert look(down("10.250.1.0/32", "10.250.1.1/32"), down("10.250.1.2/31")).suspended == ranges(
        "10.250.1.0-10.250.1.3"
    )


def test_a_range_of_which_nobody_carries_a_part_is_abandoned_after_a_while() -> None:
    services = ranges("100.64.0.0-100.71.255.255", "fd00:10::-fd00:10::ffff:ffff:ffff:ffff")
    assert look(well("10.250.0.1/32"), began=NOW - ABANDONED_S).abandoned == services
    assert look(well("10.250.0.1/32"), began=NOW - ABANDONED_S + 0.1) == Unreachable()


def test_a_range_has_its_while_from_the_last_time_that_somebody_carried_a_part_of_it() -> None:
    refusals = Refusals(RANGES[:1], 0.0)
    assert refusals.look([well("10.250.0.1/32")], NOW) == Unreachable()
    assert refusals.look([], NOW + ABANDONED_S - 0.1) == Unreachable()
    assert refusals.look([], NOW + ABANDONED_S).abandoned == ranges("10.250.0.0-10.250.255.255")


small = st.builds(
    lambda value, length: ip_network(
        (int(ip_address("10.250.0.0")) + (value >> (8 - length) << (8 - length)), 24 + length)
    ),
    st.integers(0, 255),
    st.integers(0, 8),
)


@given(st.lists(st.tuples(small, st.booleans()), max_size=12))
def test_each_address_is_refused_exactly_when_the_longest_prefix_around_it_is_dead(
    carried: list[tuple[IPNetwork, bool]],
) -> None:
    found = Refusals((), NOW).look([Carrier((prefix,), "down" if dead else "", NOW) for prefix, dead in carried], NOW)
    assert list(found.suspended) == sorted(found.suspended)
    for number in range(256):
        address = ip_address(int(ip_address("10.250.0.0")) + number)
        length = max((prefix.prefixlen for prefix, _ in carried if address in prefix), default=None)
        dead = [is_dead for prefix, is_dead in carried if address in prefix and prefix.prefixlen == length]
        assert covered(found.suspended, address) == (bool(dead) and all(dead))


def covered(found: tuple[AddressRange, ...], address: IPAddress) -> bool:
    return sum(int(first) <= int(address) <= int(last) for first, last in found) == 1
