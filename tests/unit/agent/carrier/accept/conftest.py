"""A listener with short time limits and real sockets, and clients that say what a test wants."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.carrier import accept
from agent.carrier.api import TlsFiles, Turned
from agent.carrier.capsule import head
from agent.carrier.upgrade import upgrade_exchange
from lab import loopback
from lab.loopback import SERVER_NAME, Echo, Pki, Server

REQUEST = upgrade_exchange(SERVER_NAME).request
PLAIN = REQUEST.replace(b"Rhizome-Version: 1\r\n", b"")
DATAGRAM = head(5) + b"hello"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(autouse=True)
def _silence_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would keep silent connections to itself."""
    monkeypatch.setattr(accept, "DEFER_ACCEPT_S", 0)


@pytest.fixture
async def server(pki: Pki, echo: Echo) -> AsyncIterator[Server]:
    with echo:
        async with loopback.server(pki.server(), echo, max_unauthenticated=4) as running:
            yield running


class Raw:
    """A TLS client that says what the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def says(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hears(self) -> str:
        """The answer's head; empty at the end of the connection."""
        try:
            async with asyncio.timeout(5):
                return (await self.reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, OSError):
            return ""

    async def is_echoed(self) -> None:
        """A datagram goes to WireGuard and comes back, among acknowledgements."""
        await self.says(DATAGRAM)
        await self.gets(DATAGRAM)

    async def gets(self, wanted: bytes) -> None:
        """Read on until `wanted` was there."""
        received = b""
        async with asyncio.timeout(5):
            while wanted not in received:
                data = await self.reader.read(1000)
                assert data, f"ended after {received!r}"
                received += data

    async def ended(self) -> None:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(5):
                await self.reader.read()


@asynccontextmanager
async def tls_client(server: Server, files: TlsFiles) -> AsyncIterator[Raw]:
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key)
    reader, writer = await asyncio.open_connection(*server.address, ssl=context, server_hostname=SERVER_NAME)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def tcp_client(server: Server) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def turned(server: Server, cause: str, count: int = 1) -> Turned:
    """The counts, as soon as `cause` has been counted so often."""
    async with asyncio.timeout(5):
        while dict(server.downlink.turned().counts).get(cause, 0) < count:
            await asyncio.sleep(0.01)
    return server.downlink.turned()
