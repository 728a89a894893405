"""Requests over the wire: what is turned away, what comes with the head, and who is let in when it is full."""

import asyncio

import pytest

from agent.carrier.api import Up
from lab import loopback
from lab.loopback import Echo, Pki, Server
from tests.unit.agent.carrier.accept.conftest import DATAGRAM, PLAIN, REQUEST, tls_client, turned


@pytest.mark.parametrize(
    ("old", "new", "status", "cause"),
    [
        (b"/wg/51820/", b"/127.0.0.1/22/", 403, "target"),
        (b"/.well-known/", b"/elsewhere/", 404, "path"),
        (b"GET", b"POST", 400, "malformed"),
        (b"connect-udp", b"websocket", 426, "upgrade"),
        (b"Version: 1", b"Version: 9;min=9", 501, "version"),
        (b"Capsule-Protocol: ?1", b"Content-Length: 5", 400, "malformed"),
    ],
)
async def test_a_request_that_is_turned_away(
    server: Server, pki: Pki, old: bytes, new: bytes, status: int, cause: str
) -> None:
    assert old in REQUEST
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST.replace(old, new))
        assert (await raw.hears()).startswith(f"HTTP/1.1 {status} ")
    assert dict((await turned(server, cause)).counts) == {cause: 1}
    assert not server.record.of(Up)


@pytest.mark.parametrize("pieces", [1, 1000])
async def test_early_capsules_are_kept(server: Server, pki: Pki, pieces: int) -> None:
    async with tls_client(server, pki.client()) as raw:
        data = REQUEST + DATAGRAM
        step = max(1, len(data) // pieces)
        for start in range(0, len(data), step):
            await raw.says(data[start : start + step])
        assert "\r\nRhizome-Version: 1\r\n" in await raw.hears()
        await raw.gets(DATAGRAM)


async def test_a_plain_peer_gets_datagrams_and_nothing_else(server: Server, pki: Pki) -> None:
    async with tls_client(server, pki.client()) as raw:
        await raw.says(PLAIN)
        assert "Rhizome" not in await raw.hears()
        up = await server.record.until(Up)
        assert (up.peer_version, up.identity) == (0, pki.identity())
        await raw.says(DATAGRAM)
        server.streams.send(up.stream, '{"type":"grant"}')
        async with asyncio.timeout(5):
            assert await raw.reader.readexactly(len(DATAGRAM)) == DATAGRAM
            await asyncio.sleep(0.05)
        raw.writer.write_eof() if raw.writer.can_write_eof() else raw.writer.close()
        assert await raw.reader.read() == b""


async def test_a_full_server_says_so_but_takes_a_client_back(pki: Pki) -> None:
    with Echo() as echo:
        async with loopback.server(pki.server(), echo, max_streams=1) as server:
            one, two = pki.client("one"), pki.client("two")
            async with tls_client(server, one) as first, tls_client(server, two) as second:
                await first.says(REQUEST)
                assert (await first.hears()).startswith("HTTP/1.1 101 ")
                await second.says(REQUEST)
                assert (await second.hears()).startswith("HTTP/1.1 503 the server has 1 streams, which is its limit")
                await turned(server, "full")
                async with tls_client(server, one) as again:
                    await again.says(REQUEST + DATAGRAM)
                    assert (await again.hears()).startswith("HTTP/1.1 101 ")
                    await server.record.until(Up, 2)
