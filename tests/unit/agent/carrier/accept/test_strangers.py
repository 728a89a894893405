"""The listener against those who waste its time: limits, displaced strangers, floods, and a bounded log."""

import asyncio
import contextlib
import logging
import random
import resource
import socket

import pytest

from agent.carrier import accept
from agent.carrier.api import TlsFiles, Turned, Up
from lab import loopback
from lab.loopback import Echo, Pki, Server
from tests.unit.agent.carrier.accept.conftest import REQUEST, tcp_client, tls_client, turned


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
