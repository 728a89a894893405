"""One seat per identity: the newest stream wins, once it is used, and a device of its own is a seat of its own."""

import asyncio
import socket
from dataclasses import replace

import pytest

from agent.carrier import hub, streams
from agent.carrier.api import Down, Up
from agent.carrier.upgrade import upgrade_exchange
from lab.loopback import SERVER_NAME, Echo, Pki, Server
from tests.unit.agent.carrier.accept.conftest import DATAGRAM, PLAIN, REQUEST, tls_client, turned


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
