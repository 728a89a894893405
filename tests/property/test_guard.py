"""Whatever is asked for: what passes contains no protected address, and what is refused is refused for a reason that holds."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from agent.guard import SHORTEST_V4, SHORTEST_V6, SPECIAL, Protected, Reason, guard_routes
from agent.model import IPNetwork


def _network(version: int, number: int, prefixlen: int) -> IPNetwork:
    bits = 32 if version == 4 else 128
    first = number >> (bits - prefixlen) << (bits - prefixlen)
    return IPv4Network((first, prefixlen)) if version == 4 else IPv6Network((first, prefixlen))


# Numbers close to each other, so that prefixes meet; and all lengths.
close = st.integers(0, 63)
v4 = st.builds(
    lambda n, high, p: _network(4, (high << 24) | (n << 12), p), close, st.integers(0, 255), st.integers(0, 32)
)
v6 = st.builds(
    lambda n, high, p: _network(6, (high << 112) | (n << 90), p),
    close,
    st.sampled_from([0, 1, 0x2001, 0xFD00, 0xFE80, 0xFF02]),
    st.integers(0, 128),
)
networks = st.one_of(v4, v6)
protected = st.lists(st.builds(Protected, networks, st.text(min_size=1)), max_size=8)


def _share_an_address(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


@given(st.lists(networks, max_size=12), protected)
def test_verdict(routes: list[IPNetwork], protected: list[Protected]) -> None:
    verdict = guard_routes(routes, protected)

    assert sorted(map(str, [*verdict.allowed, *(r.network for r in verdict.refused)])) == sorted(map(str, routes))
    for route in verdict.allowed:
        assert route.prefixlen >= (SHORTEST_V4 if route.version == 4 else SHORTEST_V6)
        for item in (*SPECIAL, *protected):
            assert not _share_an_address(route, item.network)
    for refusal in verdict.refused:
        assert all(_share_an_address(refusal.network, item.network) for item in refusal.conflicts)
        assert str(refusal.network) in str(refusal)
        match refusal.reason:
            case Reason.DEFAULT_ROUTE:
                assert refusal.network.prefixlen == 0
            case Reason.TOO_WIDE:
                assert 0 < refusal.network.prefixlen < (SHORTEST_V4 if refusal.network.version == 4 else SHORTEST_V6)
            case Reason.SPECIAL:
                assert refusal.conflicts
                assert set(refusal.conflicts) <= set(SPECIAL)
            case Reason.CAPTURES:
                named = [item for item in protected if _share_an_address(refusal.network, item.network)]
                assert list(refusal.conflicts) == named != []
        for item in refusal.conflicts[:3]:
            assert str(item.network) in str(refusal)
            assert item.source in str(refusal)


@given(st.one_of(st.builds(IPv4Address, st.integers(0, 2**32 - 1)), st.builds(IPv6Address, st.integers(0, 2**128 - 1))))
def test_a_protected_host_is_in_no_route_that_passes(host: IPv4Address | IPv6Address) -> None:
    own = ip_network(host)
    routes = [own.supernet(new_prefix=length) for length in range(own.max_prefixlen + 1)]
    assert guard_routes(routes, [Protected(own, "own address")]).allowed == ()
