"""RFC 9298 with Envoy in both roles: our client and its terminator, its client and our server. Mutual TLS in both."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.carrier import hub
from agent.carrier.api import DialFailed, TlsFiles, Turned, Up
from lab import loopback
from lab.loopback import SERVER_NAME, Echo, Pinger, Pki, Server, free_port
from lab.proxies import Envoy

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    with Echo() as running:
        yield running


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["v4", "v6"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def server(pki: Pki, host: str, echo: Echo) -> AsyncIterator[Server]:
    async with loopback.server(pki.server(), echo, (host, free_port(host))) as running:
        yield running


async def train(pinger: Pinger, port: int, size: int, count: int = 50) -> None:
    """All of them come back. (At once they would not fit Envoy's receive buffer.)"""
    sent = []
    for _ in range(count):
        sent.append(pinger.send(port, size))
        await asyncio.sleep(0.002)
    async with asyncio.timeout(5):
        while not pinger.answers.issuperset(sent):
            await asyncio.sleep(0.01)


async def test_our_client_at_envoys_terminator(host: str, pki: Pki, echo: Echo, tmp_path: Path) -> None:
    listen = (host, free_port(host))
    with Envoy(tmp_path).connect_udp_server(listen, echo.port, pki.server()).run():
        async with loopback.client(pki.client(), listen) as client:
            up = await client.record.until(Up)
            assert (up.peer_version, up.identity) == (0, pki.server_identity)
            for size in (12, 148, 1452, 9000):
                await client.pinger.exchange(client.relay_port, size)
                await train(client.pinger, client.relay_port, size, 20)
            client.streams.send(up.stream, '{"type":"enroll"}')  # is not sent to a stranger
            client.uplink.redial()
            await client.record.until(Up, 2)
            await train(client.pinger, client.relay_port, 1452)


async def test_our_client_without_the_right_certificate_at_envoys_terminator(
    pki: Pki, echo: Echo, tmp_path: Path
) -> None:
    listen = ("127.0.0.1", free_port())
    with Envoy(tmp_path / "envoy").connect_udp_server(listen, echo.port, pki.server()).run():
        stranger = Pki(tmp_path / "stranger").client()
        files = TlsFiles(str(pki.directory / "ca.crt"), stranger.certificate, stranger.key)
        async with loopback.client(files, listen) as client:
            failed = await client.record.until(DialFailed)
            assert (failed.stage, failed.detail) == (
                "tls",
                "the other side refused our certificate: it does not know the CA that issued it",
            )


async def test_envoys_client_at_our_server(server: Server, pki: Pki, echo: Echo, tmp_path: Path) -> None:
    listen = ("127.0.0.1", _free_udp_port())
    files = pki.client("envoy")
    with Pinger() as pinger, Envoy(tmp_path).connect_udp_client(listen, server.address, SERVER_NAME, files).run():
        await pinger.exchange(listen[1], 148, timeout_s=10)
        up = await server.record.until(Up)
        assert (up.peer_version, up.identity) == (0, pki.identity("envoy"))
        for size in (12, 148, 1452, 9000):
            await pinger.exchange(listen[1], size)
            await train(pinger, listen[1], size, 20)


async def test_envoys_client_takes_the_seat_over_from_itself(
    server: Server, pki: Pki, echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second session of Envoy's with the same certificate: the newest wins once it is used."""
    monkeypatch.setattr(hub, "PROOF_TIMEOUT_S", 0.5)
    listen = ("127.0.0.1", _free_udp_port())
    files = pki.client("envoy")
    with (
        Pinger() as first,
        Pinger() as second,
        Envoy(tmp_path).connect_udp_client(listen, server.address, SERVER_NAME, files).run(),
    ):
        await first.exchange(listen[1], timeout_s=10)
        await second.exchange(listen[1], timeout_s=10)
        assert len(server.record.of(Up)) == 2


async def test_envoys_client_without_a_certificate_of_ours(server: Server, pki: Pki, tmp_path: Path) -> None:
    listen = ("127.0.0.1", _free_udp_port())
    stranger = Pki(tmp_path / "stranger", "shoot--b").client()
    files = TlsFiles(str(pki.directory / "ca.crt"), stranger.certificate, stranger.key)
    with Pinger() as pinger, Envoy(tmp_path / "e").connect_udp_client(listen, server.address, SERVER_NAME, files).run():
        pinger.send(listen[1])
        turned = await server.record.until(Turned, timeout_s=10)
        assert turned.counts[0][0] == "unknown_ca"
        assert not server.record.of(Up)


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
