"""Established TLS streams over loopback, and a stand-in for WireGuard's socket, for the tests of the data path."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from agent.carrier.capsule import Ack, CapsuleParser, Control, Item, Ping, Pong, Run, encode_ack, encode_pong
from agent.pki import make_ca

ItemT = TypeVar("ItemT", Run, Control, Ping, Pong, Ack)


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Server's and client's."""
    issued = make_ca(Path(tmp_path_factory.mktemp("relay-pki")), "test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(issued.certificate, issued.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    server.num_tickets = 0
    return server, client


def handshake(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """A server's and a client's end, non-blocking, handshake done."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        outer = socket.create_connection(listener.getsockname())
        inner, _ = listener.accept()
    for sock in (outer, inner):
        sock.setblocking(False)
    server = contexts[0].wrap_socket(inner, server_side=True, do_handshake_on_connect=False)
    client = contexts[1].wrap_socket(outer, do_handshake_on_connect=False)
    waiting = {server, client}
    while waiting:
        for stream in tuple(waiting):
            try:
                stream.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.discard(stream)
    return server, client


class Peer:
    """The other end of a stream, driven by the test: sends bytes, collects capsules."""

    def __init__(self, stream: ssl.SSLSocket) -> None:
        self.stream = stream
        self.items: list[Item] = []
        self.raw = b""
        #: Whether what is read is acknowledged, and the ping that a relay starts with answered.
        self.acks = True
        #: That ping; it is not among the items.
        self.greeting: Ping | None = None
        self._parser = CapsuleParser(extensions=True)
        self._buffer = bytearray(512 * 1024)

    async def send(self, data: bytes, timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            for start in range(0, len(data), 16384):
                while not self._offer(data[start : start + 16384]):
                    await asyncio.sleep(0.001)

    def _offer(self, piece: bytes) -> bool:
        try:
            self.stream.send(piece)
        except ssl.SSLWantWriteError:
            return False
        return True

    def read(self) -> bool:
        """Take what is there; False: the stream has ended."""
        while True:
            try:
                data = self.stream.recv(65536)
            except ssl.SSLWantReadError:
                return True
            if not data:
                return False
            self.raw += data
            received = self._parser.received_bytes
            end = self._parser.restore(self._buffer)
            self._buffer[end : end + len(data)] = data
            for item in self._parser.parse(self._buffer, end + len(data)):
                if isinstance(item, Run):
                    item = Run(item.segment_bytes, item.total_bytes, [memoryview(bytes(p)) for p in item.payloads])
                if isinstance(item, Ping) and self.greeting is None:
                    self.greeting = item
                    if self.acks:
                        self._offer(encode_pong(item.opaque))
                else:
                    self.items.append(item)
            if self.acks and self._parser.received_bytes > received:
                self._offer(encode_ack(self._parser.received_bytes))

    @property
    def payloads(self) -> list[bytes]:
        return [bytes(p) for item in self.items if isinstance(item, Run) for p in item.payloads]

    def of(self, kind: type[ItemT]) -> list[ItemT]:
        return [item for item in self.items if isinstance(item, kind)]

    async def until(self, condition: Callable[[], object], timeout_s: float = 5.0) -> None:
        """Read on until the condition holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.read()
                await asyncio.sleep(0.001)

    async def until_payloads(self, count: int = 1) -> None:
        """Read on until so many packets have arrived."""
        await self.until(lambda: len(self.payloads) >= count)

    async def ended(self, timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while self.read():
                await asyncio.sleep(0.001)


#: Makes a stream: the relay's end, and the test's.
Streams = Callable[[], tuple[ssl.SSLSocket, Peer]]


class FakeWireGuard:
    """A UDP socket where WireGuard's would be."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.received: list[bytes] = []

    def send(self, port: int, *packets: bytes) -> None:
        for packet in packets:
            self.sock.sendto(packet, ("127.0.0.1", port))

    async def until(self, count: int, timeout_s: float = 5.0) -> list[bytes]:
        """What has arrived, as soon as it is so many packets."""
        async with asyncio.timeout(timeout_s):
            while len(self.received) < count:
                try:
                    self.received.append(self.sock.recv(65536))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        return self.received


@pytest.fixture
def wireguard() -> Iterator[FakeWireGuard]:
    fake = FakeWireGuard()
    yield fake
    fake.sock.close()


@pytest.fixture
async def streams(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> AsyncIterator[Streams]:
    made: list[ssl.SSLSocket] = []

    def make() -> tuple[ssl.SSLSocket, Peer]:
        server, client = handshake(contexts)
        made.extend((server, client))
        return server, Peer(client)

    yield make
    for stream in made:
        loop = asyncio.get_running_loop()
        if stream.fileno() >= 0:
            loop.remove_reader(stream)
            loop.remove_writer(stream)
            stream.close()
