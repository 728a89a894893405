"""Every NetStack: the fake, and the real Linux in a network namespace of the test's own; and what others do to a host."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import ip_interface, ip_network

import pytest

from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.firewall import Firewall, render
from agent.host import (
    AddAddress,
    NetStack,
    SetLink,
)
from agent.model import IFALIAS_PREFIX, IPInterface, LinkState, Route
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
