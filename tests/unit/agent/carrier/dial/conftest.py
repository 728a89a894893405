"""A server to dial, and stubs that answer what a test wants."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agent.carrier.api import DialConfig, Proxy, TlsFiles
from agent.carrier.dial import DialError, dial
from agent.carrier.tls import Credentials
from lab import loopback
from lab.loopback import Echo, Pki, Server, dial_config

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Another control plane with a CA of its own."""
    return Pki(tmp_path_factory.mktemp("stranger"), "shoot--b")


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[Server]:
    with Echo() as echo:
        async with loopback.server(pki.server(), echo) as running:
            yield running


@asynccontextmanager
async def stub(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, int]]:
    """Somebody else's server on loopback."""
    closing: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        closing.append(writer)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    running = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield running.sockets[0].getsockname()
    finally:
        running.close()
        for writer in closing:
            writer.transport.abort()
        await running.wait_closed()
        await asyncio.sleep(0.01)


def answering(head: bytes) -> Handler:
    """Reads a request's head, answers it and waits for the other side to close."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        await reader.read()

    return handle


def forwarding(heads: list[bytes]) -> Handler:
    """A CONNECT proxy that keeps the heads it gets."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        host, port = head.split()[1].decode().rsplit(":", 1)
        inner, outer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\nContent-Length: 7\r\n\r\n")
        try:
            await asyncio.gather(pump(reader, outer), pump(inner, writer))
        finally:
            outer.close()

    return handle


def config(files: TlsFiles, address: tuple[str, int], *proxies: Proxy) -> DialConfig:
    return dial_config(files, 1, address[:2], *proxies)


async def failure(wanted: DialConfig) -> DialError:
    with pytest.raises(DialError) as caught:
        await dial(wanted, Credentials(wanted.tls, server_side=False))
    return caught.value
