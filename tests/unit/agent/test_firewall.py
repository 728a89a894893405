"""The firewall's text: goldens, determinism, and that nothing in a value can become nft syntax.

After a wanted change of the text: `RHIZOME_GOLDEN=write pytest tests/unit/agent/test_firewall.py`, then read the diff.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.firewall import COUNTERS, AddressRange, Door, Firewall, Transit, Unreachable, render
from agent.model import IPNetwork

GOLDEN = Path(__file__).parents[2] / "golden" / "firewall"


def networks(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(map(ip_network, texts))


def ranges(first: str, last: str) -> AddressRange:
    return ip_address(first), ip_address(last)


TUNNEL = ("192.168.128.0/17", "fd8f:6d53:b97a:1::/96")
CASES = {
    "hub": Firewall(
        devices=frozenset({"rhizome0"}),
        sources=networks(*TUNNEL, "10.250.0.0/16", "100.96.0.0/11", "100.64.0.0/13"),
        local_ports=frozenset({51820}),
    ),
    "node": Firewall(
        devices=frozenset({"rhizome0"}),
        sources=networks(*TUNNEL),
        initiators=networks(*TUNNEL),
        destinations=networks(*TUNNEL, "10.250.0.7/32", "100.96.3.0/24", "100.64.0.0/13", "2001:db8:3::/64"),
        masquerade=networks("100.96.3.0/24", "100.64.0.0/13", "2001:db8:3::/64"),
        unmasked=networks("100.64.8.0/24", "2001:db8:3::8/125"),
        local_ports=frozenset({51820}),
    ),
    "transit": Firewall(
        devices=frozenset({"rz-direct", "rz-seed"}),
        sources=networks(*TUNNEL, "10.250.0.0/16", "100.64.0.0/13"),
        local_ports=frozenset({51820}),
        doors=frozenset({Door(51821, networks("10.10.0.0/16", "fd00:10::/64"))}),
        hubs=frozenset({"rz-seed"}),
        transits=frozenset(
            {
                Transit(networks("192.168.128.8/32", "fd8f::8/128"), networks("10.250.0.0/16", "100.64.0.0/13")),
                Transit(networks("192.168.128.9/32", "fd8f::9/128"), networks("10.250.0.0/16")),
                Transit(networks("192.168.128.10/32"), frozenset()),
            }
        ),
        unreachable=Unreachable(
            suspended=(ranges("10.250.0.7", "10.250.0.7"), ranges("fd01::", "fd01::ffff")),
            abandoned=(ranges("100.64.0.0", "100.71.255.255"),),
        ),
    ),
    "two_hubs": Firewall(
        devices=frozenset({"rz-direct", "rz-seed", "rz-seed-b"}),
        sources=networks(*TUNNEL, "10.250.0.0/16"),
        local_ports=frozenset({51820, 51822}),
        hubs=frozenset({"rz-seed", "rz-seed-b"}),
        transits=frozenset({Transit(networks("192.168.128.9/32"), networks("10.250.0.0/16"))}),
    ),
    "two_devices": Firewall(
        devices=frozenset({"rhizome0", "rhizome1"}),
        sources=networks("192.168.128.0/17"),
        initiators=networks("192.168.128.1/32"),
        destinations=networks("10.0.0.0/9", "10.128.0.0/9"),
        masquerade=networks("10.0.0.0/8"),
        local_ports=frozenset({51821, 51820}),
        mtu_bytes=1280,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.nft"
    text = render(CASES[name])
    if os.environ.get("RHIZOME_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_is_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


def test_there_is_no_set_in_it() -> None:
    """Sets are not replaced at the same moment as rules (see the module); a table definition has only these braces."""
    for firewall in CASES.values():
        for line in render(firewall).splitlines():
            assert not re.search(r"\{.*\S", line), line
            assert not line.strip().startswith(("set ", "map ")), line


def test_every_counter_is_explained_and_counts_something() -> None:
    text = render(CASES["node"]) + render(CASES["transit"])
    assert set(re.findall(r"^\tcounter (\w+) \{$", text, re.MULTILINE)) == set(COUNTERS)
    assert set(re.findall(r'counter name "(\w+)"', text)) == set(COUNTERS)


def test_an_empty_value_lets_nothing_out_of_the_tunnel() -> None:
    text = render(Firewall(frozenset({"rhizome0"}), frozenset()))
    assert re.search(r'chain sources \{\n\t\tcounter name "spoofed" drop\n', text)
    assert re.search(r"chain destinations \{\n\t\}", text)
    assert "masquerade" not in text


def test_the_most_specific_and_the_merged_prefix_stand_once() -> None:
    text = render(CASES["two_devices"])
    assert text.count("10.0.0.0/8") == 2  # as the sum of two halves among the destinations, and to masquerade
    assert "10.128.0.0" not in text


@pytest.mark.parametrize(
    "name",
    ["", "wg*", 'wg0" drop', "wg 0", "wg0\n", "a" * 16, "wg;0", "wg0}", "../wg0", "-wg", "wg/0", "wgé"],
)
def test_a_name_that_nft_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="interface name"):
        render(replace(CASES["hub"], devices=frozenset({"rhizome0", name})))


def test_all_problems_are_named_at_once() -> None:
    bad = Firewall(frozenset(), frozenset(), local_ports=frozenset({0, 65536}), mtu_bytes=1279)
    with pytest.raises(ConfigError) as caught:
        render(bad)
    assert len(caught.value.problems) == 4


def test_a_zone_id_is_no_way_in() -> None:
    zoned = IPv6Network("fe80::%x;drop/64")
    text = render(Firewall(frozenset({"rhizome0"}), frozenset({zoned})))
    assert "ip6 saddr fe80::/64 return" in text
    assert "%" not in text
    assert ";drop" not in text


prefixes = st.one_of(
    st.builds(lambda n, p: ip_network((n >> (32 - p) << (32 - p), p)), st.integers(0, 2**32 - 1), st.integers(1, 32)),
    st.builds(
        lambda n, p: ip_network((n >> (128 - p) << (128 - p), p)), st.integers(2**64, 2**128 - 1), st.integers(1, 128)
    ),
)
_LINE = re.compile(r"\t\tip6? saddr [0-9a-f:.]+(/[0-9]+)? return")


@given(st.frozensets(prefixes, max_size=12))
def test_the_sources_are_exactly_those_given(sources: frozenset[IPNetwork]) -> None:
    text = render(Firewall(frozenset({"rhizome0"}), sources))
    body = re.search(r"chain sources \{\n(.*?)\t\}", text, re.DOTALL)
    assert body is not None
    *rules, last = body[1].splitlines()
    assert last == '\t\tcounter name "spoofed" drop'
    assert all(_LINE.fullmatch(rule) for rule in rules)
    shown = [ip_network(rule.split()[2]) for rule in rules]
    for network in sources:
        assert any(network.version == other.version and network.subnet_of(other) for other in shown)  # type: ignore[arg-type]
    for version in (4, 6):
        merged = [network for network in shown if network.version == version]
        assert not any(a != b and a.overlaps(b) for a in merged for b in merged)
        total = sum(network.num_addresses for network in merged)
        assert total <= sum(network.num_addresses for network in sources if network.version == version)
