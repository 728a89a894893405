"""A listener that changes while streams stay: certificates, addresses, the port of WireGuard."""

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from agent.carrier.api import Down, Up
from agent.errors import ConfigError, HostError
from agent.model import FWMARK
from lab import loopback
from lab.loopback import Echo, Pki, Server, free_port
from tests.unit.agent.carrier.accept.conftest import DATAGRAM, REQUEST, Raw, tls_client, turned


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
