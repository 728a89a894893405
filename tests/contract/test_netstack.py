"""What every NetStack does, said once: the fake, and the real Linux in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

import pytest

from agent.errors import ConfigError, HostError
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.firewall import Firewall, render
from agent.host import (
    AddAddress,
    AddRoute,
    AddRule,
    DelAddress,
    DelRoute,
    DelRule,
    NetStack,
    NetStep,
    SetFirewall,
    SetLink,
    SetSysctl,
)
from agent.model import IFALIAS_PREFIX, IPInterface, LinkState, NetState, Route
from agent.netlink import LinuxNetStack

ALIAS = IFALIAS_PREFIX + "1"
ADDRESS4, ADDRESS6 = ip_interface("192.168.128.2/32"), ip_interface("fd8f::2/128")
RANGE4, RANGE6 = ip_network("10.1.0.0/16"), ip_network("fd00:1::/64")
FORWARD = "net.ipv4.ip_forward"


def firewall(*networks: str) -> str:
    return render(Firewall(frozenset({"wg0"}), frozenset(map(ip_network, networks))))


class FakeWorld:
    """A pretend host; each stack is what another process would have."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.host = FakeHost()

    async def start(self) -> NetStack:
        return FakeNetStack(self.host)

    def add_link(self, ifname: str, alias: str = ALIAS) -> None:
        self.host.add_link(ifname, "wireguard", alias=alias)

    def delete_link(self, ifname: str) -> None:
        self.host.delete_link(ifname)

    def down(self, ifname: str) -> None:
        self.host.set_up(ifname, False)

    def delete_route(self, route: Route) -> None:
        self.host.delete_route(route)

    def delete_rule(self, family: int) -> None:
        self.host.delete_rule(family)

    def delete_address(self, ifname: str, address: IPInterface) -> None:
        self.host.delete_address(ifname, address)

    def set_sysctl(self, key: str, value: str) -> None:
        self.host.set_sysctl(key, value)

    def edit_firewall(self) -> None:
        self.host.set_firewall("")

    def flush_firewall(self) -> None:
        self.host.set_firewall(None)


class LinuxWorld:
    """The kernel, in a network namespace; the other programs are ip, sysctl and nft."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self) -> NetStack:
        return await self._stack.enter_async_context(LinuxNetStack())

    def add_link(self, ifname: str, alias: str = ALIAS) -> None:
        # A kernel without WireGuard lends a veth: only the link-local address that it gives itself is different.
        if subprocess.run(
            ["ip", "link", "add", ifname, "type", "wireguard"], check=False, capture_output=True
        ).returncode:
            run("ip", "link", "add", ifname, "type", "veth", "peer", "name", f"{ifname}-peer")
            run("ip", "link", "set", f"{ifname}-peer", "up")
        if alias:
            run("ip", "link", "set", ifname, "alias", alias)

    def delete_link(self, ifname: str) -> None:
        run("ip", "link", "del", ifname)

    def down(self, ifname: str) -> None:
        run("ip", "link", "set", ifname, "down")

    def delete_route(self, route: Route) -> None:
        run("ip", f"-{route.dst.version}", "route", "del", str(route.dst), "table", "7117")

    def delete_rule(self, family: int) -> None:
        run("ip", f"-{family}", "rule", "del", "pref", "5000")

    def delete_address(self, ifname: str, address: IPInterface) -> None:
        run("ip", "address", "del", str(address), "dev", ifname)

    def set_sysctl(self, key: str, value: str) -> None:
        run("sysctl", "-qw", f"{key}={value}")

    def edit_firewall(self) -> None:
        run("nft", "insert", "rule", "inet", "rhizome", "input", "accept")

    def flush_firewall(self) -> None:
        run("nft", "flush", "ruleset")


World = FakeWorld | LinuxWorld


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            yield FakeWorld(stack)
        else:
            request.getfixturevalue("netns")
            yield LinuxWorld(stack)


@pytest.fixture
async def net(world: World) -> NetStack:
    return await world.start()


async def link_of(net: NetStack, ifname: str) -> LinkState:
    """The link without the link-local address that a kernel may give it by itself."""
    link = (await net.read([ifname])).link(ifname)
    assert link is not None
    addresses = frozenset(address for address in link.addresses if not address.ip.is_link_local)
    return LinkState(link.mtu_bytes, link.up, link.alias, addresses)


async def device(world: World, net: NetStack, ifname: str = "wg0") -> None:
    """A device that is up and has an address of each family."""
    world.add_link(ifname)
    await net.apply([AddAddress(ifname, ADDRESS4), AddAddress(ifname, ADDRESS6), SetLink(ifname, up=True)])


async def test_an_untouched_host_has_nothing_of_ours(world: World, net: NetStack) -> None:
    world.add_link("foreign", alias="somebody else's")
    world.add_link("nameless", alias="")
    assert await net.read(None) == NetState()


async def test_links_are_found_by_name_and_by_alias(world: World, net: NetStack) -> None:
    world.add_link("wg0")
    world.add_link("foreign", alias="somebody else's")
    assert [name for name, _ in (await net.read(None)).links] == ["wg0"]
    assert [name for name, _ in (await net.read(["wg0", "foreign", "absent", "wg0"])).links] == ["foreign", "wg0"]
    assert (await link_of(net, "foreign")).alias == "somebody else's"


async def test_a_link_is_set_in_one_step(world: World, net: NetStack) -> None:
    world.add_link("wg0", alias="")
    await net.apply([SetLink("wg0", mtu_bytes=1400, up=True, alias=ALIAS)])
    assert await link_of(net, "wg0") == LinkState(1400, True, ALIAS, frozenset())
    await net.apply([SetLink("wg0", up=False)])
    assert await link_of(net, "wg0") == LinkState(1400, False, ALIAS, frozenset())


async def test_addresses_come_and_go_twice_without_error(world: World, net: NetStack) -> None:
    world.add_link("wg0")
    add: list[NetStep] = [AddAddress("wg0", ADDRESS4), AddAddress("wg0", ADDRESS6)]
    delete: list[NetStep] = [DelAddress("wg0", ADDRESS4), DelAddress("wg0", ADDRESS6)]
    await net.apply([*add, *add])
    assert (await link_of(net, "wg0")).addresses == {ADDRESS4, ADDRESS6}
    await net.apply([*delete, *delete])
    assert (await link_of(net, "wg0")).addresses == frozenset()
    world.delete_link("wg0")
    await net.apply(delete)


async def test_an_address_gets_another_prefix_length(world: World, net: NetStack) -> None:
    world.add_link("wg0")
    await net.apply(
        [AddAddress("wg0", ip_interface("fd8f::2/64")), AddAddress("wg0", ip_interface("192.168.128.2/17"))]
    )
    await net.apply([AddAddress("wg0", ADDRESS6), DelAddress("wg0", ip_interface("fd8f::2/64"))])
    await net.apply([AddAddress("wg0", ADDRESS4), DelAddress("wg0", ip_interface("192.168.128.2/17"))])
    assert (await link_of(net, "wg0")).addresses == {ADDRESS4, ADDRESS6}


async def test_routes_come_change_and_go(world: World, net: NetStack) -> None:
    await device(world, net)
    await device(world, net, "wg1")
    routes = {
        Route(RANGE4, "wg0"),
        Route(RANGE4, "wg1", metric=50),
        Route(RANGE6, "wg0", source=ADDRESS6.ip),
        Route(RANGE6, "wg1", metric=50),
        Route(IPv4Network("0.0.0.0/0"), "wg0", source=ADDRESS4.ip),
        Route(IPv6Network("::/0"), "wg0"),
        Route(ip_network("10.2.3.4/32"), "wg0"),
    }
    await net.apply([AddRoute(route) for route in sorted(routes, key=str)] * 2)
    assert (await net.read(None)).routes == routes

    moved = {Route(RANGE4, "wg1", source=ADDRESS4.ip), Route(RANGE6, "wg1")}
    await net.apply([AddRoute(route) for route in moved])
    routes = {route for route in routes if route.dst not in (RANGE4, RANGE6) or route.metric} | moved
    assert (await net.read(None)).routes == routes

    await net.apply([DelRoute(route) for route in sorted(routes, key=str)] * 2)
    assert (await net.read(None)).routes == frozenset()


async def test_deleting_a_route_spares_the_one_that_took_its_place(world: World, net: NetStack) -> None:
    await device(world, net)
    await device(world, net, "wg1")
    await net.apply([AddRoute(Route(RANGE4, "wg1")), AddRoute(Route(RANGE6, "wg1"))])
    await net.apply([DelRoute(Route(RANGE4, "wg0")), DelRoute(Route(RANGE6, "wg0"))])
    assert (await net.read(None)).routes == {Route(RANGE4, "wg1"), Route(RANGE6, "wg1")}


async def test_a_thousand_routes_in_one_batch(world: World, net: NetStack) -> None:
    await device(world, net)
    routes = {Route(IPv4Network((0x0A000000 + (i << 8), 24)), "wg0", ADDRESS4.ip) for i in range(600)}
    routes |= {Route(IPv6Network(((0xFD01 << 112) + (i << 64), 64)), "wg0", ADDRESS6.ip) for i in range(600)}
    await net.apply([AddRoute(route) for route in routes])
    assert (await net.read(None)).routes == routes
    await net.apply([DelRoute(route) for route in routes])
    assert (await net.read(None)).routes == frozenset()


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (Route(RANGE4, "absent"), errno.ENODEV),
        (Route(RANGE4, "asleep"), errno.ENETDOWN),
        (Route(RANGE4, "wg0", ip_address("203.0.113.1")), errno.EINVAL),
        (Route(RANGE6, "wg0", ip_address("2001:db8::1")), errno.EINVAL),
    ],
)
async def test_a_route_that_cannot_be_is_refused(world: World, net: NetStack, route: Route, code: int) -> None:
    await device(world, net)
    world.add_link("asleep")
    with pytest.raises(HostError) as caught:
        await net.apply([AddRoute(route)])
    assert caught.value.errno == code
    assert str(AddRoute(route)) in str(caught.value)


async def test_a_batch_stops_at_the_step_that_fails(world: World, net: NetStack) -> None:
    with pytest.raises(HostError) as caught:
        await net.apply([AddRule(4), AddRoute(Route(RANGE4, "absent")), AddRule(6)])
    assert caught.value.errno == errno.ENODEV
    assert (await net.read(None)).rules == {4}


async def test_addresses_and_links_need_their_device(net: NetStack) -> None:
    for step in (AddAddress("absent", ADDRESS4), SetLink("absent", up=True)):
        with pytest.raises(HostError) as caught:
            await net.apply([step])
        assert caught.value.errno == errno.ENODEV


async def test_a_link_that_goes_down_takes_its_routes_along(world: World, net: NetStack) -> None:
    await device(world, net)
    await net.apply([AddRoute(Route(RANGE4, "wg0")), AddRoute(Route(RANGE6, "wg0"))])
    world.down("wg0")
    state = await net.read(None)
    assert state.routes == frozenset()
    assert await link_of(net, "wg0") == LinkState(state.links[0][1].mtu_bytes, False, ALIAS, frozenset({ADDRESS4}))
    await net.apply([SetLink("wg0", up=True)])
    assert (await net.read(None)).routes == frozenset()


async def test_an_address_that_goes_takes_its_routes_or_their_source(world: World, net: NetStack) -> None:
    await device(world, net)
    await net.apply([AddRoute(Route(RANGE4, "wg0", ADDRESS4.ip)), AddRoute(Route(RANGE6, "wg0", ADDRESS6.ip))])
    await net.apply([DelAddress("wg0", ADDRESS4), DelAddress("wg0", ADDRESS6)])
    assert (await net.read(None)).routes == {Route(RANGE6, "wg0")}


async def test_a_device_that_goes_takes_everything_along(world: World, net: NetStack) -> None:
    await device(world, net)
    await net.apply([AddRoute(Route(RANGE4, "wg0")), AddRoute(Route(RANGE6, "wg0")), AddRule(4)])
    world.delete_link("wg0")
    assert await net.read(None) == NetState(rules=frozenset({4}))
    await net.apply([DelRoute(Route(RANGE4, "wg0"))])


async def test_rules_are_per_family_and_idempotent(net: NetStack) -> None:
    await net.apply([AddRule(4), AddRule(6), AddRule(4), AddRule(6)])
    assert (await net.read(None)).rules == {4, 6}
    await net.apply([DelRule(4), DelRule(4)])
    assert (await net.read(None)).rules == {6}
    await net.apply([DelRule(6)])
    assert (await net.read(None)).rules == frozenset()


async def test_sysctls_are_set_and_read(world: World, net: NetStack) -> None:
    world.add_link("wg.0")
    dotted = "net.ipv4.conf.wg/0.rp_filter"
    await net.apply([SetSysctl(FORWARD, "1"), SetSysctl(dotted, "2")])
    state = await net.read(None, [FORWARD, dotted, "net.ipv4.absent"])
    assert state.sysctls == {(FORWARD, "1"), (dotted, "2")}


async def test_a_sysctl_of_an_absent_device_or_of_the_whole_host_is_refused(net: NetStack) -> None:
    with pytest.raises(HostError) as caught:
        await net.apply([SetSysctl("net.ipv4.conf.absent.rp_filter", "2")])
    assert caught.value.errno == errno.ENOENT
    for key in ("kernel.panic", "net./..kernel.panic", "net"):
        with pytest.raises(ConfigError, match="sysctl"):
            await net.apply([SetSysctl(key, "1")])


async def test_the_firewall_is_recognised_while_it_is_what_was_applied(world: World, net: NetStack) -> None:
    text, other = firewall("10.0.0.0/8"), firewall("10.0.0.0/9")
    await net.apply([SetFirewall(text)])
    assert (await net.read(None)).firewall == text
    assert (await net.read(None, firewall=other)).firewall == text
    await net.apply([SetFirewall(other), SetFirewall(other)])
    assert (await net.read(None)).firewall == other
    await net.apply([SetFirewall(None), SetFirewall(None)])
    assert (await net.read(None)).firewall is None


async def test_a_new_process_recognises_the_firewall_by_the_text_that_it_wants(world: World, net: NetStack) -> None:
    text = firewall("10.0.0.0/8")
    await net.apply([SetFirewall(text)])
    successor = await world.start()
    assert (await successor.read(None)).firewall == ""
    assert (await successor.read(None, firewall=firewall("10.0.0.0/9"))).firewall == ""
    assert (await successor.read(None, firewall=text)).firewall == text
    await successor.apply([SetFirewall(text)])
    assert (await successor.read(None)).firewall == text
    world.edit_firewall()
    assert (await (await world.start()).read(None, firewall=text)).firewall == ""


async def test_an_edited_or_flushed_firewall_is_seen_and_mended(world: World, net: NetStack) -> None:
    text = firewall("10.0.0.0/8")
    await net.apply([SetFirewall(text)])
    world.edit_firewall()
    assert (await net.read(None, firewall=text)).firewall == ""
    await net.apply([SetFirewall(text)])
    assert (await net.read(None)).firewall == text
    world.flush_firewall()
    assert (await net.read(None, firewall=text)).firewall is None
    await net.apply([SetFirewall(text)])
    assert (await net.read(None)).firewall == text


TAMPERINGS: dict[str, Callable[[World], None]] = {
    "route deleted": lambda world: world.delete_route(Route(RANGE4, "wg0")),
    "IPv6 route deleted": lambda world: world.delete_route(Route(RANGE6, "wg0")),
    "rule deleted": lambda world: world.delete_rule(4),
    "IPv6 rule deleted": lambda world: world.delete_rule(6),
    "address deleted": lambda world: world.delete_address("wg0", ADDRESS4),
    "link down": lambda world: world.down("wg0"),
    "link deleted": lambda world: world.delete_link("wg0"),
    "wanted link added": lambda world: world.add_link("wg1", alias=""),
    "sysctl changed": lambda world: world.set_sysctl(FORWARD, "0"),
    "firewall edited": lambda world: world.edit_firewall(),
    "firewall flushed": lambda world: world.flush_firewall(),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_changes_by_others_give_a_hint(world: World, net: NetStack, tampering: str) -> None:
    await device(world, net)
    await net.apply([SetFirewall(firewall("10.0.0.0/8")), AddRule(4), AddRule(6), SetSysctl(FORWARD, "1")])
    await net.apply([AddRoute(Route(RANGE4, "wg0")), AddRoute(Route(RANGE6, "wg0"))])
    await net.read(["wg0", "wg1"])
    async with listening(net) as hinted:
        TAMPERINGS[tampering](world)
        await asyncio.wait_for(hinted.wait(), 2.0)


@asynccontextmanager
async def listening(net: NetStack) -> AsyncIterator[asyncio.Event]:
    """An event that the next hint sets; those that came of what was done before are over."""
    hinted = asyncio.Event()

    async def listen() -> None:
        async for _ in net.changes():
            hinted.set()

    task = asyncio.ensure_future(listen())
    try:
        await asyncio.sleep(0.02)
        while True:
            hinted.clear()
            try:
                await asyncio.wait_for(hinted.wait(), 0.3)
            except TimeoutError:
                break
        yield hinted
    finally:
        task.cancel()
        await asyncio.wait([task])
