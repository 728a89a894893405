"""From any state to any state in one pass; an interrupted pass converges in the next; an unchanged world gives an empty plan.

The host is the fake, which obeys the kernel's rules: prefixes move between peers, a small MTU or a link that goes down takes
addresses and routes along.
"""

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_interface

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import apply, observe
from agent.errors import HostError
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.host import Step
from agent.model import (
    IFALIAS_PREFIX,
    Device,
    Endpoint,
    IPInterface,
    IPNetwork,
    Peer,
    PresharedKey,
    PrivateKey,
    PublicKey,
    Route,
    Tunnel,
)
from agent.plan import plan

NETWORKS: list[IPNetwork] = [IPv4Network((0x0A000000 + (i << 16), 16)) for i in range(6)]
NETWORKS += [IPv6Network(((0xFD00 << 112) + (i << 64), 64)) for i in range(4)]
ADDRESSES: list[IPInterface] = [ip_interface(f"192.168.128.{i}/32") for i in range(1, 4)]
ADDRESSES += [ip_interface(f"fd8f::{i}/128") for i in range(1, 4)]
KEYS = [PublicKey(bytes([i]) * 32) for i in range(1, 6)]
NAMES = ["wg-a", "wg-b"]


@st.composite
def peers(draw: st.DrawFn) -> frozenset[Peer]:
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4))
    owner = draw(st.lists(st.sampled_from([*keys, None]), min_size=len(NETWORKS), max_size=len(NETWORKS)))
    return frozenset(
        Peer(
            key,
            frozenset(n for n, k in zip(NETWORKS, owner, strict=True) if k == key),
            endpoint=draw(st.none() | st.builds(Endpoint, st.just(ADDRESSES[0].ip), st.integers(1, 3))),
            preshared_key=draw(st.none() | st.just(PresharedKey(b"p" * 32)) | st.just(PresharedKey(b"q" * 32))),
            persistent_keepalive_s=draw(st.sampled_from([0, 25])),
        )
        for key in keys
    )


@st.composite
def tunnels(draw: st.DrawFn) -> Tunnel:
    devices = []
    routes = set()
    free = list(NETWORKS)
    spare = list(ADDRESSES)
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=2)):
        addresses = draw(st.lists(st.sampled_from(spare), unique=True, max_size=3))
        spare = [a for a in spare if a not in addresses] or list(ADDRESSES)
        devices.append(
            Device(
                name,
                PrivateKey(draw(st.sampled_from([b"k" * 32, b"l" * 32]))),
                listen_port=draw(st.sampled_from([51820, 51821])),
                fwmark=draw(st.sampled_from([0, 0x52])),
                mtu_bytes=draw(st.sampled_from([1280, 1420])),
                alias=IFALIAS_PREFIX + draw(st.sampled_from(["r e1", "r e2"])),
                addresses=frozenset(addresses),
                peers=draw(peers()),
            )
        )
        for network in draw(st.lists(st.sampled_from(free), unique=True, max_size=5)):
            free.remove(network)
            sources = [None, *(a.ip for a in addresses if a.version == network.version)]
            routes.add(Route(network, name, draw(st.sampled_from(sources)), draw(st.sampled_from([0, 50]))))
        if not free:
            break
    sysctls = frozenset({("net.ipv4.ip_forward", "1")}) if draw(st.booleans()) else frozenset[tuple[str, str]]()
    return Tunnel(tuple(devices), frozenset(routes), draw(st.sampled_from([None, "table a", "table b"])), sysctls)


class World:
    """One fake host, and what the engine does to it."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.wg = FakeWireGuard(self.host)
        self.net = FakeNetStack(self.host)

    def plan(self, want: Tunnel) -> tuple[Step, ...]:
        # All of ours is observed, so that a device that is no longer wanted is seen (as cleanup and a renamed device need it).
        return plan(want, asyncio.run(observe(self.wg, self.net, None, want)))

    def apply(self, steps: tuple[Step, ...]) -> None:
        asyncio.run(apply(steps, self.wg, self.net))

    def reach(self, want: Tunnel) -> None:
        self.apply(self.plan(want))

    def vandalise(self) -> Iterator[str]:
        """What other programs and people do to a host."""
        for name in list(self.host.links):
            yield "mtu"
            self.host.set_mtu(name, 1200)
            yield "down"
            self.host.set_up(name, False)
            yield "delete"
            self.host.delete_link(name)
        yield "routes"
        self.host.routes.clear()
        self.host.rules.clear()
        yield "nft"
        self.host.firewall = ""


@settings(max_examples=300, deadline=None)
@given(tunnels(), tunnels())
def test_any_state_reaches_any_other_in_one_pass(first: Tunnel, second: Tunnel) -> None:
    world = World()
    for want in (first, second, first):
        world.reach(want)
        assert world.plan(want) == ()


@settings(max_examples=200, deadline=None)
@given(tunnels(), tunnels(), st.integers(0, 40))
def test_an_interrupted_pass_converges_in_the_next(first: Tunnel, second: Tunnel, cut: int) -> None:
    world = World()
    world.reach(first)
    world.apply(world.plan(second)[:cut])
    world.reach(second)
    assert world.plan(second) == ()


@settings(max_examples=100, deadline=None)
@given(tunnels(), st.integers(0, 8))
def test_whatever_others_do_to_the_host_one_pass_repairs_it(want: Tunnel, acts: int) -> None:
    world = World()
    world.reach(want)
    for _, _act in zip(range(acts), world.vandalise(), strict=False):
        pass
    try:
        world.reach(want)
    except HostError:  # a device that vanished took its keys along: the next look sees that
        world.reach(want)
    assert world.plan(want) == ()


@settings(max_examples=50, deadline=None)
@given(tunnels())
def test_wanting_nothing_removes_everything(want: Tunnel) -> None:
    world = World()
    world.reach(want)
    world.reach(Tunnel())
    assert not world.host.links and not world.host.routes and not world.host.rules
    assert world.host.firewall is None
