"""Packets that flow while peers are edited arrive, every one of them; packets from a stolen address do not.

One device sends, two receive. The receivers' links are moved to another network namespace; their UDP sockets stay in the
one they were made in, so the outer packets need no network but loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from agent.host import CreateDevice, RemoveAllowedIPs, RemovePeer, SetDevice, SetPeer, WireGuard
from agent.keys import generate_private_key, public_key
from agent.model import Endpoint, IPNetwork, Peer
from agent.wireguard.choose import Mode, choose

pytestmark = pytest.mark.netns

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

SENDER, ONE, TWO = 0, 1, 2
ADDRESSES = ("10.77.0.1", "10.77.0.2", "10.77.0.3")
#: Reached through either receiver.
SERVICE = "10.88.0.1"
SERVICE_NET: IPNetwork = IPv4Network("10.88.0.0/24")
PORT = 7000
EDIT_S = 2.0


def ip(*commands: str, netns: str | None = None) -> None:
    options = [] if netns is None else ["-n", netns]
    subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(commands), text=True, check=True)


@contextlib.contextmanager
def named_namespace(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def socket_in(netns: str) -> socket.socket:
    """A UDP socket keeps to the namespace it was made in; so a thread goes there to make it."""
    made: list[socket.socket] = []

    def make() -> None:
        with Path(f"/run/netns/{netns}").open() as namespace:
            if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class World:
    """Three devices and their sessions. `edit` may change the sender's peers while packets are on their way."""

    def __init__(self, wg: WireGuard, netns: str) -> None:
        self.wg = wg
        self.netns = netns
        self.names = [f"rzt{os.getpid():x}n{number}" for number in range(3)]
        self.keys = [generate_private_key() for _ in range(3)]
        self.public = [public_key(key) for key in self.keys]
        self.ports = random.sample(range(20_000, 30_000), 3)

    async def start(self) -> None:
        for name, key, port in zip(self.names, self.keys, self.ports, strict=True):
            await self.wg.create(CreateDevice(name, 1420, "rhizome traffic"))
            await self.wg.apply([SetDevice(name, key, port)])
        for number in (ONE, TWO):
            source = IPv4Network(ADDRESSES[SENDER])
            await self.wg.apply([SetPeer(self.names[number], self.public[SENDER], frozenset({source}))])
            ip(f"link set {self.names[number]} netns {self.netns}")
        ip(
            *(f"link set {self.names[n]} up" for n in (ONE, TWO)),
            f"address add {SERVICE}/32 dev lo",
            *(f"address add {ADDRESSES[n]}/32 dev {self.names[n]}" for n in (ONE, TWO)),
            f"route add {ADDRESSES[SENDER]}/32 dev {self.names[ONE]}",
            "link set lo up",
            netns=self.netns,
        )
        ip(
            f"link set {self.names[SENDER]} up",
            f"address add {ADDRESSES[SENDER]}/32 dev {self.names[SENDER]}",
            f"route add 10.0.0.0/8 dev {self.names[SENDER]}",
        )
        for number in (ONE, TWO):
            own = frozenset({IPv4Network(ADDRESSES[number])})
            endpoint = Endpoint(IPv4Address("127.0.0.1"), self.ports[number])
            await self.wg.apply([SetPeer(self.names[SENDER], self.public[number], own, endpoint)])
        await self.give(ONE, SERVICE_NET)

    async def give(self, number: int, *networks: IPNetwork) -> None:
        await self.wg.apply([SetPeer(self.names[SENDER], self.public[number], frozenset(networks))])

    async def remove(self, number: int, *networks: IPNetwork) -> None:
        await self.wg.apply([RemoveAllowedIPs(self.names[SENDER], self.public[number], frozenset(networks))])

    async def peers(self) -> dict[int, Peer]:
        state = await self.wg.read(self.names[SENDER])
        assert state is not None
        return {self.public.index(peer.public_key): peer for peer in state.peers}

    async def stop(self) -> None:
        for number in (ONE, TWO):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(f"link del {self.names[number]}", netns=self.netns)
        await self.wg.delete(self.names[SENDER])


@pytest.fixture(
    params=[Mode.USERSPACE, pytest.param(Mode.KERNEL, marks=pytest.mark.kernel_wireguard)], ids=lambda mode: mode.value
)
async def world(request: pytest.FixtureRequest, netns: None) -> AsyncIterator[World]:
    choice = await choose(request.param)
    with named_namespace(f"rzt{os.getpid()}") as far:
        world = World(choice.backend, far)
        try:
            await world.start()
            yield world
        finally:
            await world.stop()


async def reach(far: socket.socket, address: str, *, within_s: float) -> bool:
    """Whether one of the packets to `address` arrives, one every 50 ms."""
    loop = asyncio.get_running_loop()
    mark = os.urandom(8)
    until = loop.time() + within_s
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.setblocking(False)
        while loop.time() < until:
            with contextlib.suppress(OSError):
                near.sendto(mark, (address, PORT))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    while await loop.sock_recv(far, 100) != mark:
                        pass
                return True
    return False


@contextlib.asynccontextmanager
async def listening(world: World) -> AsyncIterator[socket.socket]:
    """A socket on all addresses over there, once both sessions are up."""
    with socket_in(world.netns) as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        far.bind(("", PORT))
        far.setblocking(False)
        for number in (ONE, TWO):
            assert await reach(far, ADDRESSES[number], within_s=20), "no session"
        yield far


class Stream(threading.Thread):
    """Numbered packets to the service at an even pace, from a thread of their own until `stop`."""

    def __init__(self, pace_s: float) -> None:
        super().__init__()
        self.sent = 0
        self.errors: list[OSError] = []
        self._pace_s = pace_s
        self._over = threading.Event()

    def run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
            near.connect((SERVICE, PORT))
            while not self._over.wait(self._pace_s):
                try:
                    near.send(self.sent.to_bytes(4, "big"))
                except OSError as exc:
                    self.errors.append(exc)
                self.sent += 1

    def end(self) -> None:
        self._over.set()
        self.join()


async def lost_during(world: World, far: socket.socket, edit: Callable[[int], Awaitable[None]]) -> set[int]:
    """Numbers of the packets that did not arrive while `edit(0)`, `edit(1)`, ... ran."""
    loop = asyncio.get_running_loop()
    stream = Stream(0.0005)
    arrived: set[int] = set()

    async def receive() -> None:
        while True:
            arrived.add(int.from_bytes(await loop.sock_recv(far, 100), "big"))

    receiver = loop.create_task(receive())
    stream.start()
    try:
        until, rounds = time.monotonic() + EDIT_S, 0
        while time.monotonic() < until or rounds < 5:
            await edit(rounds)
            rounds += 1
            await asyncio.sleep(0)
    finally:
        await asyncio.to_thread(stream.end)
    settled = time.monotonic() + 5
    while len(arrived) < stream.sent and time.monotonic() < settled:
        await asyncio.sleep(0.05)
    receiver.cancel()
    await asyncio.wait((receiver,))  # or it would take the reader of the next socket with this number along
    assert stream.sent > 100, "the probe was too slow to see anything"
    assert not stream.errors
    return set(range(stream.sent)) - arrived


async def test_adding_and_removing_other_allowed_ips_loses_nothing(world: World) -> None:
    others = [IPv4Network((0x0A640000 + (number << 4), 28)) for number in range(2_000)]

    async def edit(number: int) -> None:
        await world.give(ONE, *others)
        await world.remove(ONE, *others[:1_000])
        await world.remove(ONE, *others[1_000:])

    async with listening(world) as far:
        assert await lost_during(world, far, edit) == set()
    assert (await world.peers())[ONE].allowed_ips == {SERVICE_NET, IPv4Network(ADDRESSES[ONE])}


async def test_moving_the_allowed_ip_in_use_loses_nothing(world: World) -> None:
    async with listening(world) as far:
        assert (
            await lost_during(world, far, lambda number: world.give(TWO if number % 2 else ONE, SERVICE_NET)) == set()
        )


async def test_setting_the_same_again_and_editing_other_peers_loses_nothing(world: World) -> None:
    stranger = public_key(generate_private_key())
    name = world.names[SENDER]

    async def edit(number: int) -> None:
        peers = await world.peers()
        one = peers[ONE]
        await world.wg.apply(
            [
                SetPeer(name, stranger, frozenset({IPv4Network("10.99.0.0/16")})),
                SetPeer(name, one.public_key, one.allowed_ips, one.endpoint, None, number % 2 * 25),
                SetDevice(name, private_key=world.keys[SENDER]),
            ]
        )
        await world.wg.apply([RemovePeer(name, stranger)])

    async with listening(world) as far:
        assert await lost_during(world, far, edit) == set()


async def test_a_stolen_allowed_ip_is_seen_in_the_next_read_and_its_owner_is_not_heard(world: World) -> None:
    """WireGuard drops what comes from an address that is not the sender's: this is what keeps clients apart."""
    async with listening(world) as far:
        assert await reach(far, SERVICE, within_s=5)
        peers = await world.peers()
        assert SERVICE_NET in peers[ONE].allowed_ips
        await world.give(TWO, SERVICE_NET)
        peers = await world.peers()
        assert SERVICE_NET not in peers[ONE].allowed_ips
        assert SERVICE_NET in peers[TWO].allowed_ips
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
            near.bind((ADDRESSES[SENDER], PORT))
            near.setblocking(False)
            # The service answers through device ONE, whose peer lost the service's address.
            with socket_in(world.netns) as back:
                back.bind((SERVICE, PORT + 1))
                for _ in range(20):
                    back.sendto(b"forged", (ADDRESSES[SENDER], PORT))
                    await asyncio.sleep(0.01)
                with pytest.raises(BlockingIOError):
                    near.recv(100)
                await world.give(ONE, SERVICE_NET)
                back.sendto(b"genuine", (ADDRESSES[SENDER], PORT))
                async with asyncio.timeout(5):
                    assert await asyncio.get_running_loop().sock_recv(near, 100) == b"genuine"


async def test_handshake_and_counters_show_in_the_status(world: World) -> None:
    async with listening(world) as far:
        before = time.time()
        assert await reach(far, SERVICE, within_s=5)
    state = await world.wg.read(world.names[SENDER])
    assert state is not None
    status = next(status for status in state.statuses if status.public_key == world.public[ONE])
    assert status.latest_handshake is not None
    assert before - 60 < status.latest_handshake <= time.time() + 1
    assert status.tx_bytes > 0
    assert status.rx_bytes > 0
