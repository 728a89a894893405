"""Many shoot clients in one process: real TLS streams, real enrolment, real liveness, real WireGuard sessions in Python.

python -m benchmarks._crowd COUNT PKI-DIRECTORY HOST PORT: says `enrolled SECONDS` once each has its grant, and `answering
SECONDS` once each has answered a canary. A line with a number on its stdin freezes that client: its stream stays, and it says
nothing in the tunnel any more; `frozen SECONDS` says that it is so. Ends with its stdin. Clients come over to a new device of the server's, as
real ones do (docs/adr/0018-wireguard-keys.md).
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

from agent.carrier.api import SYMBOLIC_TARGET, Command, DialConfig, Down, Event, Message, Redial, Send, TlsFiles, Up
from agent.carrier.sockets import SO_RCVBUFFORCE
from agent.carrier.streams import Streams
from agent.carrier.uplink import Uplink
from agent.client.succession import GRACE_S
from agent.identity import Identity, Role
from agent.keys import generate_private_key, public_key
from agent.messages import Offer
from agent.session import Session, State
from lab import addresses
from lab.noise import WireGuardPeer, canary_answer

AT_ONCE = 60  # dial at a time: the server takes 64 strangers; who is pushed out comes again later
TICK_S = 1.0
#: WireGuard's REKEY_TIMEOUT and REKEY_AFTER_TIME (whitepaper section 6.1).
RETRY_S, REKEY_S = 5.0, 120.0

NODES = IPv4Network("10.128.0.0/16")
PODS = IPv4Network("100.96.0.0/11")
SERVICES = IPv4Network("100.64.0.0/13")


def client_name(number: int) -> str:
    return f"crowd-{number}"


def offer(number: int) -> Offer:
    """A node with an address and pods of its own, and the services that all of them share."""
    node = IPv4Network(NODES[number + 1])
    return Offer((node,), (IPv4Network((int(PODS[0]) + number * 256, 24)),), (SERVICES,))


class Member:
    """One client, or what it has at a second device of the server's (`target`): its carrier's role, its session, and a device that
    answers canaries. `on_successor` is told when the server asks it to come over to another device."""

    def __init__(
        self,
        number: int,
        directory: Path,
        server: tuple[str, int],
        device: socket.socket,
        on_successor: Callable[[Member, str], None],
        target: str = SYMBOLIC_TARGET,
    ) -> None:
        self.number = number
        stem = f"client-{client_name(number)}"
        tls = TlsFiles(*(str(directory / name) for name in ("ca.crt", f"{stem}.crt", f"{stem}.key")))
        identity = str(Identity(addresses.CONTROL_PLANE, Role.SEED_SERVER))
        self.connected = asyncio.Event()
        self.joined = asyncio.Event()
        self.answered = asyncio.Event()
        self.confirmed = asyncio.Event()  # that it sends by this device, which was its second one
        self._leads = False
        self.frozen = False
        self._key = generate_private_key()
        standby = target != SYMBOLIC_TARGET
        self._session = Session((("stream", public_key(self._key)),), offer(number), standby=standby)
        self._on_successor = on_successor
        self._device = device
        self._peer: WireGuardPeer | None = None
        self._handshake_at = 0.0
        self._streams = Streams(self._publish, first=1)
        port = device.getsockname()[1]
        config = DialConfig(*server, addresses.SERVER_NAME, tls, port, expected_identity=identity, target=target)
        self._uplink = Uplink(config, self._streams, self._publish)

    @property
    def relay_port(self) -> int:
        return self._uplink.relay_port

    def lead(self, *, leads: bool) -> None:
        """It sends by this device from now on, or by the other one."""
        self._leads = leads
        self._do(self._session.set_standby(not leads))

    def close(self) -> None:
        self._uplink.close()

    def tick(self, now: float) -> None:
        self._do(self._session.tick(now))
        due = REKEY_S if self._peer is not None and self._peer.is_up else RETRY_S
        if now - self._handshake_at >= due and not self.frozen:
            self._shake_hands(now)

    def on_datagram(self, data: bytes) -> None:
        """The server's WireGuard speaks."""
        if self._peer is None or self.frozen:
            return
        back, packet = self._peer.receive(data)
        self._transmit(back)
        if answer := canary_answer(packet):
            self._transmit(self._peer.send(answer))
            self.answered.set()

    def _shake_hands(self, now: float) -> None:
        if self._peer is not None:
            self._handshake_at = now - random.uniform(0, 1)
            self._transmit(self._peer.initiate())

    def _transmit(self, datagram: bytes) -> None:
        if datagram:
            with suppress(BlockingIOError, ConnectionRefusedError):
                self._device.sendto(datagram, ("127.0.0.1", self.relay_port))

    def _publish(self, event: Event) -> None:
        """As from one process to another: not in the middle of what the carrier is doing."""
        asyncio.get_running_loop().call_soon(self._on_event, event)

    def _on_event(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Up):
            self.connected.set()
            self._do(self._session.on_up(event.stream, event.replay, now))
        elif isinstance(event, Message):
            self._do(self._session.on_message(event.stream, event.text, now))
            self._granted(now)
        elif isinstance(event, Down):
            self._session.on_down(event.stream)
        if self._session.state is State.JOINED:
            self.joined.set()

    def _granted(self, now: float) -> None:
        grant = self._session.grant
        if self._peer is None and grant is not None:
            self._peer = WireGuardPeer(self._key, dict(grant.public_keys)["stream"], grant.preshared_key)
            self._shake_hands(now)
        if self._leads:
            self.confirmed.set()
        if grant is not None and grant.successor and not self._session.standby:
            self._on_successor(self, grant.successor)

    def _do(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self._streams.send(command.stream, command.text)
            elif isinstance(command, Redial):
                self._uplink.redial()


class Crowd:
    """All members, and the UDP socket that is the device of each."""

    def __init__(self, directory: Path, server: tuple[str, int]) -> None:
        self._directory = directory
        self._server = server
        self._device = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._device.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._device.bind(("127.0.0.1", 0))
        asyncio.get_running_loop().add_reader(self._device, self._on_readable)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._begin = time.monotonic()
        self._by_port: dict[int, Member] = {}
        self.members: dict[int, Member] = {}  # what each sends by
        self._beside: dict[int, Member] = {}  # what it has besides
        self._coming: set[asyncio.Task[None]] = set()
        self.over = asyncio.Event()

    async def gather(self, count: int) -> None:
        """All of them join, as many at once as the server takes."""
        self._begin = time.monotonic()
        await asyncio.gather(*map(self._join, range(count)))
        print("enrolled", time.monotonic() - self._begin, flush=True)
        await asyncio.gather(*(member.answered.wait() for member in self.members.values()))
        print("answering", time.monotonic() - self._begin, flush=True)

    async def _join(self, number: int) -> None:
        async with self._turns:
            member = self.members[number] = self._member(number)
            await member.connected.wait()
        await member.joined.wait()

    def _member(self, number: int, target: str = SYMBOLIC_TARGET) -> Member:
        member = Member(number, self._directory, self._server, self._device, self._successor, target)
        self._by_port[member.relay_port] = member
        return member

    def _successor(self, member: Member, target: str) -> None:
        if member.number not in self._beside and not member.frozen:
            self._beside[member.number] = member
            task = asyncio.ensure_future(self._come_over(member, target))
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    async def _come_over(self, old: Member, target: str) -> None:
        async with self._turns:
            new = self._beside[old.number] = self._member(old.number, target)
            await new.connected.wait()
        await new.answered.wait()
        self.members[old.number], self._beside[old.number] = new, old
        new.lead(leads=True)
        old.lead(leads=False)
        await new.confirmed.wait()
        await asyncio.sleep(GRACE_S)
        del self._by_port[old.relay_port], self._beside[old.number]
        old.close()

    async def live(self) -> None:
        """Spread over each second."""
        while True:
            for number in range(10):
                now = time.monotonic()
                both = (*self.members.items(), *self._beside.items())
                for member in [m for n, m in both if n % 10 == number]:
                    member.tick(now)
                await asyncio.sleep(TICK_S / 10)

    def obey(self) -> None:
        """A line on stdin, or its end."""
        text = os.read(0, 4096).decode()
        if not text:
            self.over.set()
            asyncio.get_running_loop().remove_reader(0)
        for word in text.split():
            self.members[int(word)].frozen = True
            print("frozen", time.monotonic() - self._begin, flush=True)

    def _on_readable(self) -> None:
        with suppress(BlockingIOError, ConnectionRefusedError):
            for _ in range(256):
                data, (_, port) = self._device.recvfrom(2048)
                if (member := self._by_port.get(port)) is not None:
                    member.on_datagram(data)


async def main(count: int, directory: Path, host: str, port: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(directory, (host, port))
    loop = asyncio.get_running_loop()
    loop.add_reader(0, crowd.obey)
    ticking = asyncio.ensure_future(crowd.live())
    gc.disable()  # nothing here is garbage before the end
    await crowd.gather(count)
    gc.freeze()
    await crowd.over.wait()
    ticking.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
