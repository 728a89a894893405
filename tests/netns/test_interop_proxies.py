"""Our client and our server through other people's proxies, on loopback, over IPv4 and IPv6; and what refusals look like."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.carrier.api import DialFailed, Down, Message, Proxy, Up
from lab import loopback
from lab.loopback import CONTROL_PLANE, SERVER_NAME, Client, Echo, Pki, Server, free_port
from lab.proxies import Address, Envoy, Running, haproxy, nginx, squid

pytestmark = pytest.mark.netns

HEADER = ("X-Gardener-Destination", f"outbound|1194||vpn-seed-server.{CONTROL_PLANE}.svc.cluster.local")
OLD_HEADER = ("Reversed-VPN", f"outbound|1194||vpn-seed-server.{CONTROL_PLANE}.svc.cluster.local")
DESTINATIONS = {HEADER[1]}

SniProxy = Callable[[Path, Address, Mapping[str, Address]], Running]


def envoy_sni(directory: Path, listen: Address, routes: Mapping[str, Address]) -> Running:
    return Envoy(directory).sni(listen, routes).run()


SNI = {"envoy": envoy_sni, "haproxy": haproxy, "nginx": nginx}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's own, which proxies that give up their privileges cannot read.
    with tempfile.TemporaryDirectory(prefix="rz-interop-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["v4", "v6"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def server(pki: Pki, host: str) -> AsyncIterator[Server]:
    with Echo() as echo:
        async with loopback.server(pki.server(), echo, (host, free_port(host))) as running:
            yield running


async def crosses(client: Client, server: Server) -> Up:
    """Datagrams of all sizes, 200 at once, and control messages both ways."""
    up = await client.record.until(Up, timeout_s=10)
    for size in (12, 148, 1452, 9000):
        await client.pinger.exchange(client.relay_port, size)
    sent = [client.pinger.send(client.relay_port, 1452) for _ in range(200)]
    async with asyncio.timeout(5):
        while not client.pinger.answers.issuperset(sent):
            await asyncio.sleep(0.01)
    client.streams.send(up.stream, '{"type":"enroll"}')
    heard = await server.record.until(Message)
    server.streams.send(heard.stream, '{"type":"grant"}')
    await client.record.until(Message)
    return up


@pytest.mark.parametrize("kind", SNI)
async def test_sni_passthrough(kind: str, host: str, server: Server, pki: Pki, directory: Path) -> None:
    listen = (host, free_port(host))
    with SNI[kind](directory, listen, {SERVER_NAME: server.address}):
        async with loopback.client(pki.client(), listen) as client:
            up = await crosses(client, server)
            assert up.identity == pki.server_identity and SERVER_NAME in up.via


@pytest.mark.parametrize("kind", SNI)
async def test_a_name_that_an_sni_proxy_does_not_know(kind: str, pki: Pki, directory: Path) -> None:
    listen = ("127.0.0.1", free_port())
    with SNI[kind](directory, listen, {"other.test": ("127.0.0.1", free_port())}):
        async with loopback.client(pki.client(), listen) as client:
            failed = await client.record.until(DialFailed, 3)
            assert failed.stage == "tls"
            assert f"an SNI proxy that knows no {SERVER_NAME}, or whose server is away" in failed.detail
            assert failed.retry_in_s <= 0.8


@pytest.mark.parametrize("kind", SNI)
async def test_a_proxy_that_comes_back_is_used_within_a_second(kind: str, pki: Pki, directory: Path) -> None:
    with Echo() as echo:
        async with loopback.server(pki.server(), echo) as server:
            listen = ("127.0.0.1", free_port())
            with SNI[kind](directory, listen, {SERVER_NAME: server.address}) as proxy:
                async with loopback.client(pki.client(), listen) as client:
                    await crosses(client, server)
                    proxy.kill()
                    await client.record.until(Down)
                    await client.record.until(DialFailed, 4)
                    proxy.start()
                    loop = asyncio.get_running_loop()
                    back = loop.time()
                    await client.record.until(Up, 2)
                    await client.pinger.exchange(client.relay_port)
                    assert loop.time() - back < 1.0


async def test_envoy_connect_by_authority(host: str, server: Server, pki: Pki, directory: Path) -> None:
    listen = (host, free_port(host))
    authority = f"{SERVER_NAME}:443"
    with Envoy(directory).connect(listen, by_authority={authority: server.address}).run():
        async with loopback.client(pki.client(), (SERVER_NAME, 443), Proxy(*listen)) as client:
            up = await crosses(client, server)
            assert up.via == f"CONNECT {loopback_authority(listen)}"


def loopback_authority(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


@pytest.mark.parametrize("header", [HEADER, OLD_HEADER], ids=["today", "before"])
async def test_envoy_connect_by_header(
    header: tuple[str, str], host: str, server: Server, pki: Pki, directory: Path
) -> None:
    listen = (host, free_port(host))
    with Envoy(directory).connect(listen, by_header={header: server.address}).run():
        proxy = Proxy(*listen, headers=(header,))
        async with loopback.client(pki.client(), ("ignored.test", 9), proxy) as client:
            await crosses(client, server)
        async with loopback.client(pki.client(), ("ignored.test", 9), Proxy(*listen)) as client:
            failed = await client.record.until(DialFailed)
            assert failed.stage == "proxy"
            assert "answered 403 Forbidden to CONNECT ignored.test:9: it does not allow" in failed.detail


async def test_envoy_whose_server_is_away(pki: Pki, directory: Path) -> None:
    listen, away = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    with Envoy(directory).connect(listen, by_authority={f"{SERVER_NAME}:443": away}).run():
        async with loopback.client(pki.client(), (SERVER_NAME, 443), Proxy(*listen)) as client:
            failed = await client.record.until(DialFailed, 3)
            assert failed.stage == "proxy" and "answered 503" in failed.detail
            assert "the server behind it is away" in failed.detail
            assert failed.retry_in_s <= 0.8


async def test_squid(host: str, server: Server, pki: Pki, directory: Path) -> None:
    listen = (host, free_port(host))
    with squid(directory, listen, {SERVER_NAME: host}, [server.address[1]]):
        target = (SERVER_NAME, server.address[1])
        async with loopback.client(pki.client(), target, Proxy(*listen)) as client:
            await crosses(client, server)
        async with loopback.client(pki.client(), ("other.test", target[1]), Proxy(*listen)) as client:
            failed = await client.record.until(DialFailed)
            assert failed.stage == "proxy" and "answered 403 Forbidden" in failed.detail


async def test_squid_that_wants_a_password(pki: Pki, directory: Path) -> None:
    listen = ("127.0.0.1", free_port())
    secret = directory / "credentials"
    secret.write_text("me:hush\n")
    with Echo() as echo:
        async with loopback.server(pki.server(), echo) as server:
            port = server.address[1]
            with squid(directory, listen, {SERVER_NAME: "127.0.0.1"}, [port], user="me", password="hush"):
                known = Proxy(*listen, credentials_file=str(secret))
                async with loopback.client(pki.client(), (SERVER_NAME, port), known) as client:
                    await crosses(client, server)
                for stranger in (Proxy(*listen), Proxy(*listen, credentials="me:wrong")):
                    async with loopback.client(pki.client(), (SERVER_NAME, port), stranger) as client:
                        failed = await client.record.until(DialFailed)
                        assert failed.stage == "proxy"
                        assert "answered 407 Proxy Authentication Required" in failed.detail
                        assert "it wants credentials" in failed.detail and "wrong" not in failed.detail


async def test_squid_that_cannot_reach_the_server(pki: Pki, directory: Path) -> None:
    listen, away = ("127.0.0.1", free_port()), free_port()
    with squid(directory, listen, {SERVER_NAME: "127.0.0.1"}, [away]):
        async with loopback.client(pki.client(), (SERVER_NAME, away), Proxy(*listen)) as client:
            failed = await client.record.until(DialFailed, 2)
            assert failed.stage == "proxy" and "answered 503" in failed.detail
            assert failed.retry_in_s <= 0.8


async def test_a_chain_of_two(host: str, server: Server, pki: Pki, directory: Path) -> None:
    """Out of the company's network by Squid, into the seed by Gardener's header."""
    way_out, ingress = (host, free_port(host)), (host, free_port(host))
    with ExitStack() as stack:
        stack.enter_context(squid(directory / "squid", way_out, {"ingress.test": host}, [ingress[1]]))
        stack.enter_context(Envoy(directory / "envoy").connect(ingress, by_header={HEADER: server.address}).run())
        chain = (Proxy(*way_out), Proxy("ingress.test", ingress[1], headers=(HEADER,)))
        async with loopback.client(pki.client(), (SERVER_NAME, 443), *chain) as client:
            up = await crosses(client, server)
            assert up.via == f"CONNECT {loopback_authority(way_out)}, CONNECT ingress.test:{ingress[1]}"


async def test_connect_and_then_sni(server: Server, host: str, pki: Pki, directory: Path) -> None:
    """Out by a CONNECT proxy, in by an SNI proxy."""
    way_out, ingress = (host, free_port(host)), (host, free_port(host))
    with ExitStack() as stack:
        stack.enter_context(squid(directory / "squid", way_out, {"ingress.test": host}, [ingress[1]]))
        stack.enter_context(haproxy(directory / "haproxy", ingress, {SERVER_NAME: server.address}))
        async with loopback.client(pki.client(), ("ingress.test", ingress[1]), Proxy(*way_out)) as client:
            await crosses(client, server)
