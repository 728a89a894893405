"""What only a real kernel can show: notifications, foreign objects left alone, routes and rules that others bent."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from agent import changes
from agent.errors import HostError, Unsupported
from agent.firewall import COUNTERS, Firewall, render
from agent.host import AddAddress, AddRoute, AddRule, DelRoute, DelRule, NetStep, SetFirewall, SetLink, SetSysctl
from agent.model import IFALIAS_PREFIX, ROUTE_TABLE, Route
from agent.netlink import LinuxNetStack
from lab.inside import Inside

ADDRESS4, ADDRESS6 = ip_interface("192.168.128.2/32"), ip_interface("fd8f::2/128")
RANGE4, RANGE6 = ip_network("10.1.0.0/16"), ip_network("fd00:1::/64")
ROUTES = (Route(RANGE4, "tun0", ADDRESS4.ip), Route(RANGE6, "tun0", ADDRESS6.ip))
FIREWALL = render(Firewall(frozenset({"tun0"}), frozenset({RANGE4, RANGE6})))
STEPS: tuple[NetStep, ...] = (
    SetFirewall(FIREWALL),
    SetSysctl("net.ipv4.ip_forward", "1"),
    AddAddress("tun0", ADDRESS4),
    AddAddress("tun0", ADDRESS6),
    SetLink("tun0", mtu_bytes=1400, up=True, alias=IFALIAS_PREFIX + "1"),
    AddRule(4),
    AddRule(6),
    *map(AddRoute, ROUTES),
)


def ip(*words: str, input: str | None = None) -> str:
    return subprocess.run(["ip", *words], input=input, check=True, capture_output=True, text=True).stdout


def nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, check=True, text=True)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    inside = Inside()
    try:
        with inside.entered():
            ip("link", "set", "lo", "up")
            # As with WireGuard: no link-local address by itself, which would make itself heard for two seconds.
            subprocess.run(["sysctl", "-qw", "net.ipv6.conf.default.addr_gen_mode=1"], check=True)
            for name in ("tun0", "eth0"):
                ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
                ip("link", "set", f"{name}-peer", "up")
            ip("link", "set", "eth0", "up")
            ip("address", "add", "198.51.100.1/24", "dev", "eth0")
            yield
    finally:
        inside.close()


@pytest.fixture
async def net() -> AsyncIterator[LinuxNetStack]:
    async with LinuxNetStack() as stack:
        yield stack


class Hints:
    """Counts the hints of a NetStack."""

    def __init__(self, net: LinuxNetStack) -> None:
        self._net = net
        self.count = 0

    async def __aenter__(self) -> Hints:
        async def listen() -> None:
            async for _ in self._net.changes():
                self.count += 1

        self._task = asyncio.ensure_future(listen())
        assert await self.after() == 1, "the first hint comes at once"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def after(self) -> int:
        """Hints since the last call, once all that is under way has come."""
        await asyncio.sleep(changes.LONGEST_S + 0.1)
        count, self.count = self.count, 0
        return count


async def test_our_own_changes_give_no_hint(net: LinuxNetStack) -> None:
    await net.apply([SetLink("tun0", up=True, alias=IFALIAS_PREFIX + "1")])
    await net.read(None)
    async with Hints(net) as hints:
        quiet = [step for step in STEPS if not isinstance(step, SetLink)]
        await net.apply(quiet)
        await net.read(None, ["net.ipv4.ip_forward"], FIREWALL)
        await net.apply([DelRoute(ROUTES[0]), DelRoute(ROUTES[1]), DelRule(4), DelRule(6)])
        await net.apply([SetFirewall(None)])
        # The kernel itself reports a sysctl, whoever wrote it: as one hint, with whatever else came at that time.
        assert await hints.after() <= 1
        await net.apply([step for step in quiet if not isinstance(step, SetSysctl)])
        assert await hints.after() == 0


async def test_what_others_do_with_their_own_things_gives_no_hint(net: LinuxNetStack) -> None:
    await net.apply(STEPS)
    await net.read(None)
    async with Hints(net) as hints:
        ip("route", "add", "10.1.0.0/16", "via", "198.51.100.2")
        ip("route", "add", "10.1.0.0/16", "dev", "eth0", "table", "100")
        ip("rule", "add", "from", "10.9.0.0/16", "lookup", "100", "protocol", "84")
        ip("address", "add", "203.0.113.1/32", "dev", "eth0")
        ip("link", "add", "pod1", "type", "veth", "peer", "name", "pod1-peer")
        ip("link", "set", "pod1", "up")
        ip("link", "del", "pod1")
        nft("table ip rhizome {\n}\ntable inet other {\n chain input {\n type filter hook input priority 0;\n }\n}\n")
        assert await hints.after() == 0
        ip("link", "set", "tun0", "mtu", "1300")
        assert await hints.after() == 1


async def test_a_flood_of_notifications_ends_in_a_hint_and_not_in_silence(
    net: LinuxNetStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_RECEIVE_BUFFER_BYTES", 4096)
    await net.apply(STEPS)
    await net.read(None)
    async with Hints(net) as hints:
        ip("route", "flush", "table", "main")
        batch = "".join(f"route add 10.2.{i}.0/24 dev eth0\n" for i in range(200))
        ip("-batch", "-", input=batch)  # in no table of ours, but too many
        assert await hints.after() >= 1
        await hints.after()
        ip("route", "flush", "table", str(ROUTE_TABLE))
        assert await hints.after() >= 1


@pytest.mark.parametrize(
    "bent",
    [
        ("replace", "10.1.0.0/16", "via", "198.51.100.2", "dev", "eth0"),
        ("replace", "10.1.0.0/16", "dev", "tun0", "mtu", "500"),
        ("replace", "10.1.0.0/16", "dev", "tun0"),
        ("replace", "unreachable", "10.1.0.0/16"),
        ("replace", "fd00:1::/64", "dev", "tun0", "mtu", "1300"),
        ("replace", "fd00:1::/64", "dev", "eth0"),
        ("replace", "fd00:1::/64", "via", "fe80::1", "dev", "eth0"),
        ("replace", "unreachable", "fd00:1::/64"),
    ],
    ids=" ".join,
)
async def test_a_route_that_somebody_bent_is_seen_and_mended(net: LinuxNetStack, bent: tuple[str, ...]) -> None:
    await net.apply(STEPS)
    version = 6 if any(":" in word for word in bent) else 4
    ip(f"-{version}", "route", *bent, "table", str(ROUTE_TABLE), "proto", "84")
    state = await net.read(None)
    wanted = {route for route in ROUTES if route.dst.version == version}
    odd = {route for route in state.routes if route.dst.version == version}
    assert not odd & wanted
    await net.apply([AddRoute(route) for route in wanted])
    assert (await net.read(None)).routes == set(ROUTES)

    ip(f"-{version}", "route", *bent, "table", str(ROUTE_TABLE), "proto", "84")
    await net.apply([DelRoute(route) for route in odd])
    assert (await net.read(None)).routes == set(ROUTES) - wanted


@pytest.mark.parametrize(
    "words",
    [("fwmark", "0x52/0xff"), ("not", "fwmark", "0x51/0xff"), ("not", "from", "10.0.0.0/8", "fwmark", "0x52/0xff")],
)
async def test_a_rule_of_another_version_of_ours_is_replaced(net: LinuxNetStack, words: tuple[str, ...]) -> None:
    tail = ("lookup", str(ROUTE_TABLE), "pref", "5000", "protocol", "84")
    ip("rule", "add", *words, *tail)
    assert (await net.read(None)).rules == frozenset()
    await net.apply([AddRule(4)])
    assert (await net.read(None)).rules == {4}
    (rule,) = (r for r in json.loads(ip("-j", "rule")) if r["priority"] == 5000)
    assert (rule["fwmark"], rule["fwmask"], "not" in rule) == ("0x52", "0xff", True)


async def test_the_rule_leads_everything_but_the_tunnels_own_packets_into_our_table(net: LinuxNetStack) -> None:
    await net.apply(STEPS)
    ip("route", "add", "default", "via", "198.51.100.2")
    assert "dev tun0" in ip("route", "get", "10.1.2.3")
    assert "dev eth0" in ip("route", "get", "10.1.2.3", "mark", "0x52")
    assert "dev tun0" in ip("route", "get", "10.1.2.3", "mark", "0x51")
    assert "dev eth0" in ip("route", "get", "10.1.2.3", "mark", "0x4152"), (
        "other programs' bits of the mark do not matter"
    )


async def test_cleanup_removes_exactly_what_is_ours(net: LinuxNetStack) -> None:
    ip("link", "set", "tun0", "up")  # ours is only what we change on it
    ip("address", "add", "203.0.113.7/32", "dev", "tun0")
    for words in (
        ("route", "add", "10.1.0.0/16", "via", "198.51.100.2"),
        (
            "route",
            "add",
            "10.1.0.0/16",
            "via",
            "198.51.100.2",
            "table",
            str(ROUTE_TABLE),
            "proto",
            "static",
            "metric",
            "9",
        ),
        ("route", "add", "10.1.0.0/16", "via", "198.51.100.2", "table", "7118", "proto", "84"),
        (
            "-6",
            "route",
            "add",
            "fd00:1::/64",
            "dev",
            "eth0",
            "table",
            str(ROUTE_TABLE),
            "proto",
            "static",
            "metric",
            "9",
        ),
        ("rule", "add", "not", "fwmark", "0x52/0xff", "lookup", str(ROUTE_TABLE), "pref", "5000", "protocol", "99"),
        ("rule", "add", "fwmark", "0x52/0xff", "lookup", "7118", "pref", "5001", "protocol", "84"),
    ):
        ip(*words)
    nft("table ip rhizome {\n chain input {\n type filter hook input priority 0;\n }\n}\ntable inet rhizome2 {\n}\n")
    before = snapshot()

    await net.apply(STEPS)
    await net.apply([AddRoute(Route(ip_network("10.7.0.0/16"), "tun0", metric=70))])
    assert snapshot() != before

    state = await net.read(None)
    assert state.link("tun0") is not None
    steps: list[NetStep] = [*map(DelRoute, state.routes), *map(DelRule, state.rules), SetFirewall(None)]
    await net.apply(steps)
    await net.apply([SetLink("tun0", mtu_bytes=1500, alias="")])
    for address in (ADDRESS4, ADDRESS6):
        ip("address", "del", str(address), "dev", "tun0")
    assert snapshot() == before


def snapshot() -> dict[str, Any]:
    """All that ip and nft show, without what changes by itself."""
    shown: dict[str, Any] = {}
    for words in (
        ("link",),
        ("address",),
        ("rule",),
        ("-6", "rule"),
        ("route", "show", "table", "all"),
        ("-6", "route", "show", "table", "all"),
    ):
        shown[" ".join(words)] = sorted(json.dumps(item, sort_keys=True) for item in json.loads(ip("-j", *words)))
    ruleset = json.loads(subprocess.run(["nft", "-j", "list", "ruleset"], check=True, capture_output=True).stdout)
    shown["nft"] = ruleset["nftables"]
    return shown


async def test_an_address_is_usable_at_once_as_a_preferred_source(net: LinuxNetStack) -> None:
    ip("link", "set", "tun0", "up")
    await net.apply([AddAddress("tun0", ADDRESS6), AddRule(6), AddRoute(ROUTES[1])])
    assert "src fd8f::2" in ip("-6", "route", "get", "fd00:1::1")


async def test_errors_carry_the_kernels_own_words(net: LinuxNetStack) -> None:
    with pytest.raises(HostError, match="mtu less than device minimum"):
        await net.apply([SetLink("tun0", mtu_bytes=10)])
    ip("link", "set", "tun0", "up")
    with pytest.raises(HostError, match="Invalid prefsrc address"):
        await net.apply([AddRoute(ROUTES[0])])


async def test_adopting_a_table_does_not_touch_it(net: LinuxNetStack) -> None:
    await net.apply([SetFirewall(FIREWALL)])
    before = handles()
    async with LinuxNetStack() as successor:
        await successor.apply([SetFirewall(FIREWALL)])
        assert handles() == before
        assert (await successor.read(None)).firewall == FIREWALL
        await successor.apply([SetFirewall(FIREWALL.replace("1380", "1300"))])
        assert handles() != before


def handles() -> set[tuple[str, int]]:
    listed = json.loads(
        subprocess.run(["nft", "-j", "list", "table", "inet", "rhizome"], check=True, capture_output=True).stdout
    )
    return {(kind, value["handle"]) for item in listed["nftables"] for kind, value in item.items() if "handle" in value}


async def test_a_table_whose_maker_died_before_sealing_it_is_not_trusted(net: LinuxNetStack) -> None:
    nft(FIREWALL)
    assert (await net.read(None, firewall=FIREWALL)).firewall == ""
    await net.apply([SetFirewall(FIREWALL)])
    assert (await net.read(None)).firewall == FIREWALL


@pytest.mark.parametrize(
    "edit",
    [
        "insert rule inet rhizome input accept",
        "flush chain inet rhizome from_tunnel",
        "insert rule inet rhizome sources ip saddr 198.51.100.0/24 return",
        "delete chain inet rhizome clamp",
        "add chain inet rhizome extra",
        "delete chain inet rhizome seal",
        "delete table inet rhizome; add table inet rhizome",
    ],
)
async def test_any_edit_of_the_table_is_seen(net: LinuxNetStack, edit: str) -> None:
    await net.apply([SetFirewall(FIREWALL)])
    nft(edit + "\n")
    assert (await net.read(None, firewall=FIREWALL)).firewall == ""


async def test_other_tables_come_and_go_without_disturbing_the_seal(net: LinuxNetStack) -> None:
    await net.apply([SetFirewall(FIREWALL)])
    nft("table inet other {\n}\n")
    assert (await net.read(None)).firewall == FIREWALL
    nft("delete table inet other\n")
    assert (await net.read(None)).firewall == FIREWALL


async def test_without_the_program_nft(net: LinuxNetStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert (await net.read(None)).firewall is None
    await net.apply([SetFirewall(None)])
    with pytest.raises(Unsupported, match="nftables"):
        await net.apply([SetFirewall(FIREWALL)])


async def test_counters_name_what_they_count(net: LinuxNetStack) -> None:
    assert net.firewall_counters() == {}
    await net.apply([SetFirewall(FIREWALL)])
    assert net.firewall_counters() == dict.fromkeys(COUNTERS, 0)


@contextmanager
def unprivileged() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "step",
    [
        AddRule(4),
        AddRoute(ROUTES[0]),
        SetLink("tun0", up=True),
        SetFirewall(FIREWALL),
        SetSysctl("net.ipv4.ip_forward", "1"),
    ],
)
async def test_without_privileges_the_error_says_what_is_missing(step: NetStep) -> None:
    ip("link", "set", "tun0", "up")
    with unprivileged():
        async with LinuxNetStack() as net:
            with pytest.raises(Unsupported, match=r"CAP_NET_ADMIN|privileged"):
                await net.apply([step])
