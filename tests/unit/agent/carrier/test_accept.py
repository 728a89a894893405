"""The listener against those who mean no good, and against change. Time limits are shortened; sockets are real."""

import asyncio
import contextlib
import logging
import os
import random
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.carrier import accept, hub, streams
from agent.carrier.api import Down, TlsFiles, Turned, Up
from agent.carrier.capsule import head
from agent.carrier.upgrade import upgrade_exchange
from agent.errors import ConfigError, HostError
from agent.model import FWMARK
from lab import loopback
from lab.loopback import SERVER_NAME, Echo, Pki, Server, free_port

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


# Who wastes our time


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it said nothing within 0.2 s"),
        (b"\x16\x03\x01\x02\x00\x01", "it did not finish the TLS handshake within 0.2 s"),
    ],
)
async def test_a_handshake_has_a_time_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    monkeypatch.setattr(accept, "TLS_TIMEOUT_S", 0.2)
    async with tcp_client(server) as raw:
        await raw.says(data)
        await raw.ended()
        assert words in (await turned(server, "timeout_tls")).last_detail


async def test_a_dribbled_handshake_has_the_same_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "TLS_TIMEOUT_S", 0.2)
    async with tcp_client(server) as raw:
        for byte in b"\x16\x03\x01\x02\x00" + bytes(25):
            raw.writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        await raw.ended()
    await turned(server, "timeout_tls")


async def test_a_request_head_has_a_time_limit(server: Server, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "HEAD_TIMEOUT_S", 0.2)
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST[:-2])
        assert (await raw.hears()).startswith("HTTP/1.1 408 no complete request within 0.2 s\r\n")
    await turned(server, "timeout_head")


async def test_a_request_head_has_a_size_limit(server: Server, pki: Pki) -> None:
    async with tls_client(server, pki.client()) as raw:
        await raw.says(b"GET / HTTP/1.1\r\nX: " + b"x" * 17_000)
        assert (await raw.hears()).startswith("HTTP/1.1 431 a head of more than 16384 bytes\r\n")
    await turned(server, "head_too_long")


async def test_strangers_displace_the_silent_and_a_client_gets_in(server: Server, pki: Pki) -> None:
    async with contextlib.AsyncExitStack() as stack:
        speaking = await stack.enter_async_context(tcp_client(server))
        await speaking.says(b"\x16")
        await asyncio.sleep(0.05)
        silent = [await stack.enter_async_context(tcp_client(server)) for _ in range(6)]
        now = await turned(server, "pressure", 3)
        assert dict(now.counts) == {"pressure": 3}
        assert "more than 4 connections at once that showed no certificate" in now.last_detail
        for raw in silent[:3]:
            await raw.ended()
        raw = await stack.enter_async_context(tls_client(server, pki.client()))
        await raw.says(REQUEST)
        assert (await raw.hears()).startswith("HTTP/1.1 101 ")
        # The one that had begun to speak was left alone: what it says next still gets an answer.
        await speaking.says(b"GET / HTTP/1.1\r\n\r\n")
        await turned(server, "not_tls")


async def test_when_all_have_spoken_the_oldest_goes_unless_it_is_young(
    server: Server, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "YOUNG_S", 0.3)
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            raw = await stack.enter_async_context(tcp_client(server))
            await raw.says(b"\x16")
        await asyncio.sleep(0.05)
        raw = await stack.enter_async_context(tls_client(server, pki.client()))
        await raw.says(REQUEST)
        assert (await raw.hears()).startswith("HTTP/1.1 101 ")
    assert dict((await turned(server, "pressure")).counts)["pressure"] == 1
    assert loop.time() - started > 0.3


async def test_all_clients_at_once_get_in_without_losing_one(
    pki: Pki, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "DEFER_ACCEPT_S", 5)
    files = [pki.client(f"node-{number}") for number in range(40)]

    async def come(server: Server, own: TlsFiles) -> None:
        async with tls_client(server, own) as raw:
            await raw.says(REQUEST)
            assert (await raw.hears()).startswith("HTTP/1.1 101 ")

    with echo:
        async with loopback.server(pki.server(), echo, max_unauthenticated=4) as server, asyncio.timeout(20):
            await asyncio.gather(*(come(server, own) for own in files))
            assert server.downlink.turned().counts == ()
            assert len({up.identity for up in server.record.of(Up)}) == 40


async def test_who_was_turned_away_does_not_keep_its_place(server: Server, pki: Pki) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(12):
            raw = await stack.enter_async_context(tcp_client(server))
            await raw.says(b"GET / HTTP/1.1\r\n\r\n")
        await turned(server, "not_tls", 12)
        raw = await stack.enter_async_context(tls_client(server, pki.client()))
        await raw.says(REQUEST)
        assert (await raw.hears()).startswith("HTTP/1.1 101 ")
    assert dict(server.downlink.turned().counts) == {"not_tls": 12}


async def test_the_kernel_keeps_the_silent_to_itself(pki: Pki, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "DEFER_ACCEPT_S", 5)
    with echo:
        async with loopback.server(pki.server(), echo, max_unauthenticated=1) as server:
            silent = [socket.create_connection(server.address) for _ in range(20)]
            async with tls_client(server, pki.client()) as raw:
                await raw.says(REQUEST)
                assert (await raw.hears()).startswith("HTTP/1.1 101 ")
            assert server.downlink.turned().counts == ()
            for sock in silent:
                sock.close()


async def test_one_identity_cannot_crowd_out_another(server: Server, pki: Pki) -> None:
    mine, other = pki.client("mine"), pki.client("other")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(tls_client(server, mine))
        now = await turned(server, "pressure", 2)
        assert "more than 4 connections of spiffe://shoot--a/shoot-client/mine at once" in now.last_detail
        raw = await stack.enter_async_context(tls_client(server, other))
        await raw.says(REQUEST)
        assert (await raw.hears()).startswith("HTTP/1.1 101 ")


async def test_a_flood_of_strangers_leaves_nothing_behind(server: Server, pki: Pki) -> None:
    rng = random.Random(1)
    for _ in range(300):
        with socket.create_connection(server.address) as sock:
            if rng.random() < 0.7:
                sock.send(rng.randbytes(rng.randrange(1, 300)))
            if rng.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while sum(count for _, count in server.downlink.turned().counts) < 300:
            await asyncio.sleep(0.01)
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST)
        assert (await raw.hears()).startswith("HTTP/1.1 101 ")
    causes = {cause for cause, _ in server.downlink.turned().counts}
    assert causes <= {"closed", "not_tls", "pressure", "tls_version"}


async def test_without_file_descriptors_it_rests_and_recovers(
    server: Server, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "REST_S", 0.2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket()
    highest = waiting.fileno()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        waiting.connect(server.address)
        await turned(server, "files")
        await asyncio.sleep(0.5)
        # Resting means a handful of tries, spinning would be thousands.
        assert 2 <= dict(server.downlink.turned().counts)["files"] <= 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        waiting.close()
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST)
        assert (await raw.hears()).startswith("HTTP/1.1 101 ")


async def test_health_probes_of_a_load_balancer_are_no_news(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for count in range(1, 6):
            socket.create_connection(server.address).close()
            await turned(server, "closed", count)
    assert caplog.messages == []


async def test_the_log_is_bounded_and_the_count_is_not(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        with socket.create_connection(server.address) as sock:
            sock.send(b"GET / HTTP/1.1\r\n\r\n")
            await turned(server, "not_tls", dict(server.downlink.turned().counts).get("not_tls", 0) + 1)
    assert len(caplog.messages) == 1
    assert dict(server.downlink.turned().counts) == {"not_tls": 20}
    assert 1 <= len(server.record.of(Turned)) <= 3


# Requests over the wire


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


# One seat per identity


async def test_the_newest_stream_wins_when_it_is_used(
    server: Server, pki: Pki, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "DRAIN_S", 0.3)
    files = pki.client()
    async with tls_client(server, files) as old, tls_client(server, files) as new:
        await old.says(REQUEST + DATAGRAM)
        await old.hears()
        first = await server.record.until(Up)
        await old.gets(DATAGRAM)
        endpoint = echo.endpoint
        await new.says(REQUEST)
        await new.hears()
        await asyncio.sleep(0.1)
        assert len(server.record.of(Up)) == 1, "it has the 101, but nobody uses it yet"
        echo.sock.sendto(b"to the old", endpoint or ("", 0))
        await old.gets(b"to the old")
        await new.says(DATAGRAM)
        second = await server.record.until(Up, 2)
        await new.gets(DATAGRAM)
        assert echo.endpoint == endpoint, "WireGuard sees the same endpoint"
        echo.sock.sendto(b"to the new", endpoint or ("", 0))
        await new.gets(b"to the new")
        await old.says(DATAGRAM)  # what was on its way still arrives
        await new.gets(DATAGRAM)
        down = await server.record.until(Down)
        assert (down.stream, down.reason) == (first.stream, "retired")
        assert second.stream != first.stream


async def test_an_idle_newcomer_takes_the_seat_when_it_is_left(server: Server, pki: Pki, echo: Echo) -> None:
    files = pki.client()
    async with tls_client(server, files) as new:
        async with tls_client(server, files) as old:
            await old.says(REQUEST + DATAGRAM)
            await server.record.until(Up)
            await old.hears()
            await old.gets(DATAGRAM)
            await new.says(REQUEST)
            await new.hears()
        await server.record.until(Up, 2)
        echo.sock.sendto(b"a word", echo.endpoint or ("", 0))
        await new.gets(b"a word")


async def test_a_newcomer_that_never_speaks_is_believed_in_the_end(
    server: Server, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PROOF_TIMEOUT_S", 0.1)
    files = pki.client()
    async with tls_client(server, files) as old, tls_client(server, files) as new:
        for raw in (old, new):
            await raw.says(PLAIN)
            await raw.hears()
        await server.record.until(Up, 2)


async def test_a_newcomer_that_leaves_changes_nothing(server: Server, pki: Pki) -> None:
    files = pki.client()
    async with tls_client(server, files) as old:
        await old.says(REQUEST)
        await old.hears()
        for _ in range(3):
            async with tls_client(server, files) as new:
                await new.says(REQUEST)
                await new.hears()
        await turned(server, "closed", 1)
        await old.is_echoed()
    assert len(server.record.of(Up)) == 1


async def test_an_empty_seat_is_given_up_after_a_while(
    server: Server, pki: Pki, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SEAT_KEPT_S", 0.1)
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST + DATAGRAM)
        await raw.hears()
        await raw.gets(DATAGRAM)
    await server.record.until(Down)
    await asyncio.sleep(0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(echo.endpoint or ("", 0))  # free again


# Change


async def test_new_certificates_are_used_without_dropping_streams(pki: Pki, echo: Echo, tmp_path: Path) -> None:
    own = Pki(tmp_path / "own")
    files, client = own.server(), own.client()
    with echo:
        async with loopback.server(files, echo) as server, tls_client(server, client) as old:
            await old.says(REQUEST)
            await old.hears()
            old_serial = serial(old)
            assert own.server() == files
            async with tls_client(server, client) as new:
                assert serial(new) != old_serial
            copy("torn", files.key)
            async with tls_client(server, client) as again:
                assert serial(again) != old_serial
            await old.is_echoed()


def copy(source: Path | str, target: str) -> None:
    Path(target).write_text(source if isinstance(source, str) else source.read_text())


def serial(raw: Raw) -> str:
    certificate = raw.writer.get_extra_info("peercert")
    return str(certificate["serialNumber"])


async def test_a_new_ca_turns_away_who_has_the_old_one(echo: Echo, tmp_path: Path) -> None:
    own, successor = Pki(tmp_path / "own"), Pki(tmp_path / "successor")
    files = own.server()
    with echo:
        async with loopback.server(files, echo) as server, tls_client(server, own.client()) as old:
            await old.says(REQUEST)
            await old.hears()
            client = replace(own.client(), ca=str(tmp_path / "copy.crt"))
            copy(Path(files.ca), client.ca)
            copy(Path(successor.server().ca), files.ca)
            async with tls_client(server, client) as refused:
                await refused.says(REQUEST)
                await refused.ended()
            await turned(server, "unknown_ca")
            await old.is_echoed()


async def test_addresses_are_added_and_removed_while_streams_stay(server: Server, pki: Pki) -> None:
    async with tls_client(server, pki.client()) as old:
        await old.says(REQUEST)
        await old.hears()
        gone, config = server.address, server.downlink.config
        server.downlink.reconfigure(replace(config, addresses=(("::1", free_port("::1")),)))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*gone)
        async with tls_client(server, pki.client("other")) as new:
            await new.says(REQUEST)
            assert (await new.hears()).startswith("HTTP/1.1 101 ")
        assert server.record.last(Up).peer.startswith("[::1]:")
        await old.is_echoed()


async def test_both_families_on_one_socket_and_what_excludes_it(server: Server, pki: Pki) -> None:
    port = free_port()
    config = replace(server.downlink.config, addresses=(("::", port),))
    server.downlink.reconfigure(config)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    assert "127.0.0.1:" in (await turned(server, "closed")).last_detail
    # 0.0.0.0 cannot be had while [::] is there; the change is made all the same.
    server.downlink.reconfigure(replace(config, addresses=(("0.0.0.0", port),)))
    server.downlink.reconfigure(replace(config, addresses=(("0.0.0.0", port), ("::", port))))


async def test_a_change_that_cannot_be_made_leaves_all_as_it_was(server: Server, pki: Pki) -> None:
    config = server.downlink.config
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            server.downlink.reconfigure(replace(config, addresses=(*config.addresses, ("127.0.0.1", port))))
    with pytest.raises(ConfigError, match="cannot read /nonexistent"):
        server.downlink.reconfigure(replace(config, tls=replace(config.tls, key="/nonexistent")))
    assert server.downlink.config == config
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST)
        assert (await raw.hears()).startswith("HTTP/1.1 101 ")


async def test_another_wireguard_port_ends_the_streams(server: Server, pki: Pki) -> None:
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST)
        await raw.hears()
        with Echo() as other:
            server.downlink.reconfigure(replace(server.downlink.config, wireguard_port=other.port))
            assert (await server.record.until(Down)).reason == "replaced"
            async with tls_client(server, pki.client()) as again:
                await again.says(REQUEST + DATAGRAM)
                await again.hears()
                await again.gets(DATAGRAM)


async def test_a_client_may_have_a_stream_to_each_device_and_the_one_that_goes_takes_only_its_own(
    server: Server, pki: Pki
) -> None:
    named = upgrade_exchange(SERVER_NAME, target="wg-0a1b2c3d").request
    with Echo() as other:
        config = server.downlink.config
        both = replace(config, targets=(("wg-0a1b2c3d", other.port),))
        server.downlink.reconfigure(both)
        async with tls_client(server, pki.client()) as first, tls_client(server, pki.client()) as second:
            await first.says(REQUEST + DATAGRAM)
            await first.gets(DATAGRAM)
            await second.says(named + DATAGRAM)
            await second.gets(DATAGRAM)
            await server.record.until(Up, 2)
            assert {up.wireguard_port for up in server.record.of(Up)} == {config.wireguard_port, other.port}
            assert not server.record.of(Down), "the second stream does not take the first one's place"
            server.downlink.reconfigure(replace(both, wireguard_port=other.port))
            down = await server.record.until(Down)
            assert [up.wireguard_port for up in server.record.of(Up) if up.stream == down.stream] == [
                config.wireguard_port
            ]
            await second.says(DATAGRAM)
            await second.gets(DATAGRAM)


async def test_a_device_that_is_not_there_any_more_is_refused_in_words(server: Server, pki: Pki) -> None:
    async with tls_client(server, pki.client()) as raw:
        await raw.says(upgrade_exchange(SERVER_NAME, target="wg-ffffffff").request)
        assert (await raw.hears()).startswith("HTTP/1.1 403 there is no device wg-ffffffff any more, ask for wg")


@pytest.mark.skipif(os.geteuid() != 0, reason="marking a socket needs CAP_NET_ADMIN")
async def test_the_listener_and_what_it_accepts_carry_the_tunnels_mark(server: Server, pki: Pki) -> None:
    (listening,) = server.downlink._listener._sockets.values()
    assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == FWMARK
    async with tls_client(server, pki.client()) as raw:
        await raw.says(REQUEST)
        await raw.hears()
        number = (await server.record.until(Up)).stream
        stream = server.streams._live[number].relay._stream
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == FWMARK
