"""With two devices only some prefixes get a route of their own, and each address is led as if all had one."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from agent.model import IPNetwork
from seed_server.desired import _needed

RANGES: tuple[IPNetwork, ...] = (ip_network("10.0.0.0/24"), ip_network("10.0.1.0/25"), ip_network("fd00::/120"))

prefixes = st.builds(
    lambda number, length: IPv4Network((0x0A000000 + (number << (32 - length)) % 512, length)),
    st.integers(0, 511),
    st.integers(24, 32),
)


def led(by: dict[IPNetwork, str], address: IPNetwork) -> str:
    around = [n for n in by if n.version == address.version and address.network_address in n]
    return by[max(around, key=lambda n: n.prefixlen)] if around else ""


@given(st.dictionaries(prefixes, st.sampled_from("ab")), st.sampled_from("ab"))
def test_what_is_left_out_changes_no_way(by: dict[IPNetwork, str], rest: str) -> None:
    whole = dict.fromkeys(RANGES, rest) | by
    needed = _needed(whole, frozenset(RANGES))
    assert needed.keys() >= set(RANGES) and needed.items() <= whole.items()
    for number in range(512):
        address = IPv4Network(0x0A000000 + number)
        assert led(needed, address) == led(whole, address)
