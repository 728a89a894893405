"""One attempt: what it brings, and for every way to fail the stage, the words and whether trying again soon makes sense."""

import asyncio
import datetime as dt
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.carrier import dial as module
from agent.carrier import tls
from agent.carrier.api import DialConfig, Proxy, TlsFiles, Turned, Up
from agent.carrier.dial import DialError, Stage, dial, via
from agent.carrier.tls import Credentials
from agent.pki import make_ca
from lab import loopback
from lab.loopback import CONTROL_PLANE, SERVER_NAME, Echo, Pki, Server, dial_config, free_port

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
YEAR = dt.timedelta(days=365)


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


# It works


async def test_a_link_knows_who_is_there(pki: Pki, server: Server) -> None:
    wanted = config(pki.client(), server.address)
    link = await dial(wanted, Credentials(wanted.tls, server_side=False))
    with link.stream:
        assert (link.identity, link.version) == (pki.server_identity, 1)
        assert link.peer == f"127.0.0.1:{server.address[1]}"
        assert link.via == f"TLS {link.peer} (SNI {SERVER_NAME})"
        assert link.stream.version() == "TLSv1.3"
        assert link.stream.selected_alpn_protocol() == "http/1.1"
        up = await server.record.until(Up)
        assert (up.identity, up.peer_version) == (pki.identity(), 1)


async def test_through_a_chain_of_proxies(pki: Pki, server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "credentials"
    secret.write_text("me:hush\n")
    first, second = list[bytes](), list[bytes]()
    async with stub(forwarding(first)) as one, stub(forwarding(second)) as two:
        header = ("X-Gardener-Destination", "outbound|1194||vpn-seed-server.shoot--a.svc.cluster.local")
        chain = (Proxy(*one[:2], credentials_file=str(secret)), Proxy(*two[:2], headers=(header,)))
        wanted = config(pki.client(), server.address, *chain)
        link = await dial(wanted, Credentials(wanted.tls, server_side=False))
        link.stream.close()
    assert link.via == f"CONNECT 127.0.0.1:{one[1]}, CONNECT 127.0.0.1:{two[1]}"
    assert first == [
        f"CONNECT 127.0.0.1:{two[1]} HTTP/1.1\r\nHost: 127.0.0.1:{two[1]}\r\n"
        "Proxy-Authorization: Basic bWU6aHVzaA==\r\n\r\n".encode()
    ]
    assert second[0].startswith(f"CONNECT 127.0.0.1:{server.address[1]} HTTP/1.1\r\n".encode())
    assert b"X-Gardener-Destination: outbound|1194||vpn" in second[0] and b"Authorization" not in second[0]


async def test_another_server_than_ours_gives_a_plain_link_and_early_bytes(pki: Pki) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = pki.server()
    context.load_cert_chain(files.certificate, files.key)
    head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\n\r\n\x00\x01\x00"
    async with stub(answering(head), context) as address:
        wanted = config(pki.client(), address)
        link = await dial(wanted, Credentials(wanted.tls, server_side=False))
        link.stream.close()
    assert (link.version, link.early) == (0, b"\x00\x01\x00")


def test_the_path_in_words(pki: Pki) -> None:
    files = pki.client()
    assert via(dial_config(files, 1, ("seed.test", 443))) == "TLS seed.test:443"
    assert via(dial_config(files, 1, ("::1", 443))) == "TLS [::1]:443 (SNI seed.test)"


# DNS and TCP


async def test_dns(pki: Pki) -> None:
    exc = await failure(config(pki.client(), ("no-such-name.invalid", 443)))
    assert (exc.stage, exc.final, exc.address) == (Stage.DNS, False, None)
    assert "cannot look up no-such-name.invalid" in str(exc)


async def test_tcp(pki: Pki) -> None:
    port = free_port()
    exc = await failure(config(pki.client(), ("127.0.0.1", port)))
    assert (exc.stage, exc.final, str(exc)) == (Stage.TCP, False, f"127.0.0.1:{port}: Connection refused")


# Proxies


@pytest.mark.parametrize(
    ("status", "final", "words"),
    [
        ("407 Proxy Authentication Required", True, "it wants credentials"),
        ("403 Forbidden", True, "it does not allow this destination"),
        ("404 Not Found", True, "it has no route"),
        ("502 Bad Gateway", False, "it cannot reach the server"),
        ("503 Service Unavailable", False, "the server behind it is away"),
        ("504 Gateway Timeout", False, "the server behind it does not answer"),
        ("302 Found", False, "answered 302 Found to CONNECT"),
        ("418 I'm a teapot", False, "answered 418 I'm a teapot"),
    ],
)
async def test_a_proxys_refusal(pki: Pki, status: str, final: bool, words: str) -> None:
    async with stub(answering(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())) as proxy:
        exc = await failure(config(pki.client(), ("seed.test", 443), Proxy(*proxy)))
    assert (exc.stage, exc.final) == (Stage.PROXY, final)
    assert str(exc).startswith(f"proxy 127.0.0.1:{proxy[1]} answered {status} to CONNECT seed.test:443")
    assert words in str(exc)
    assert str(exc.address) == f"127.0.0.1:{proxy[1]}"


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "299 Whatever"])
async def test_any_2xx_opens_the_tunnel(pki: Pki, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TLS_TIMEOUT_S", 0.05)
    async with stub(answering(f"HTTP/1.1 {status}\r\n\r\n".encode())) as proxy:
        exc = await failure(config(pki.client(), ("seed.test", 443), Proxy(*proxy)))
    assert (exc.stage, exc.final) == (Stage.TLS, False)
    assert str(exc) == f"CONNECT 127.0.0.1:{proxy[1]}: no answer in time"


@pytest.mark.parametrize(
    ("head", "final", "words"),
    [
        (b"", False, "no answer in time"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", False, "not an HTTP/1.1 head"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", True, "sent bytes of its own"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, False, "a head of more than 16384 bytes"),
    ],
)
async def test_a_strange_proxy(pki: Pki, head: bytes, final: bool, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROXY_TIMEOUT_S", 0.2)
    async with stub(answering(head)) as proxy:
        exc = await failure(config(pki.client(), ("seed.test", 443), Proxy(*proxy)))
    assert (exc.stage, exc.final) == (Stage.PROXY, final)
    assert words in str(exc)


async def test_a_proxy_that_closes(pki: Pki) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with stub(close) as proxy:
        exc = await failure(config(pki.client(), ("seed.test", 443), Proxy(*proxy)))
    assert (exc.stage, exc.final) == (Stage.PROXY, False)
    assert "closed the connection without an answer" in str(exc)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot read the credentials in"), ("no colon", "not one line user:password")]
)
async def test_credentials_that_cannot_be_used(pki: Pki, tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "credentials"
    if content is not None:
        file.write_text(content)
    async with stub(answering(b"")) as proxy:
        exc = await failure(config(pki.client(), ("seed.test", 443), Proxy(*proxy, credentials_file=str(file))))
    assert (exc.stage, exc.final) == (Stage.PROXY, True)
    assert words in str(exc) and "no colon" not in str(exc)


# TLS: what the server shows


@pytest.mark.parametrize(
    ("names", "now", "expected", "words"),
    [
        (("other.test",), None, None, "is for another name"),
        ((SERVER_NAME,), -2 * YEAR, None, "has expired"),
        ((SERVER_NAME,), 2 * YEAR, None, "is not valid yet"),
        ((SERVER_NAME,), None, "spiffe://shoot--a/seed-server", ""),
    ],
)
async def test_the_servers_certificate(
    names: tuple[str, ...],
    now: dt.timedelta | None,
    expected: str | None,
    words: str,
    tmp_path: Path,
) -> None:
    past = Pki(tmp_path) if now is None else _pki_at(tmp_path, dt.datetime.now(dt.UTC) + now)
    files = past.server(*names, now=None if now is None else dt.datetime.now(dt.UTC) + now)
    with Echo() as echo:
        async with loopback.server(files, echo) as server:
            wanted = replace(config(past.client(), server.address), expected_identity="spiffe://shoot--x/seed-server")
            exc = await failure(wanted)
            if not words:
                words = "is for spiffe://shoot--a/seed-server, not for spiffe://shoot--x/seed-server"
            turned = await server.record.until(Turned)
    assert (exc.stage, exc.final) == (Stage.TLS, True)
    assert f"the server's certificate {words}" in str(exc)
    cause = "closed" if "not for" in words else "refused_us"
    assert turned.counts == ((cause, 1),)


def _pki_at(directory: Path, moment: dt.datetime) -> Pki:
    """A CA that is valid at `moment` and now."""
    made = Pki(directory)
    make_ca(directory, CONTROL_PLANE, now=min(moment, dt.datetime.now(dt.UTC)), force=True)
    return made


async def test_a_server_of_another_ca(pki: Pki, stranger: Pki) -> None:
    with Echo() as echo:
        async with loopback.server(stranger.server(), echo) as server:
            exc = await failure(config(pki.client(), server.address))
            turned = await server.record.until(Turned)
    assert (exc.stage, exc.final) == (Stage.TLS, True)
    assert re.search(r"the server's certificate was issued by another CA \(wanted: seed.test, issued by", str(exc))
    assert "the other side refused our certificate: it does not know the CA" in turned.last_detail


async def test_an_sni_proxy_that_does_not_know_the_name(pki: Pki) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with stub(close) as proxy:
        exc = await failure(config(pki.client(), proxy))
    assert (exc.stage, exc.final) == (Stage.TLS, False)
    assert "an SNI proxy that knows no seed.test, or whose server is away" in str(exc)


async def test_a_port_that_speaks_no_tls(pki: Pki) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with stub(greet) as address:
        exc = await failure(config(pki.client(), address))
    assert (exc.stage, exc.final) == (Stage.TLS, True)
    assert "does not speak TLS" in str(exc)


async def test_a_server_that_speaks_only_tls_1_2(pki: Pki) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    files = pki.server()
    context.load_cert_chain(files.certificate, files.key)

    def serve(listener: socket.socket) -> None:
        # asyncio's TLS would abort without sending the alert.
        connection, _ = listener.accept()
        with connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.get_running_loop().run_in_executor(None, serve, listener)
        exc = await failure(config(pki.client(), listener.getsockname()))
        await serving
    assert (exc.stage, exc.final) == (Stage.TLS, True)
    assert "does not speak TLS 1.3" in str(exc)


async def test_our_own_files_are_unusable(pki: Pki, server: Server) -> None:
    exc = await failure(config(replace(pki.client(), key="/nonexistent"), server.address))
    assert (exc.stage, exc.final, str(exc)) == (Stage.TLS, True, "cannot read /nonexistent: No such file or directory")


@pytest.mark.parametrize("name", ["", ".seed.test", "seed\0.test", "x" * 300])
async def test_a_server_name_that_is_none(pki: Pki, server: Server, name: str) -> None:
    exc = await failure(replace(config(pki.client(), server.address), server_name=name))
    assert (exc.stage, exc.final) == (Stage.TLS, True)


# TLS and upgrade: what the server says about us. The cause is clear on both sides.


def of_another_ca(pki: Pki, stranger: Pki) -> TlsFiles:
    return replace(stranger.client(), ca=str(pki.directory / "ca.crt"))


def expired(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.client("old", now=dt.datetime.now(dt.UTC) - YEAR)


def not_yet(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.client("new", now=dt.datetime.now(dt.UTC) + YEAR)


def self_signed(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.odd(pki.identity(), self_signed=True)


def a_servers(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.server()


def of_another_control_plane(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.odd(stranger.identity())


def a_seed_servers_name(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.odd(pki.server_identity)


def without_name(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.odd()


def with_two_names(pki: Pki, stranger: Pki) -> TlsFiles:
    return pki.odd(pki.identity("a"), pki.identity("b"))


@pytest.mark.parametrize(
    ("files", "stage", "words", "cause", "detail"),
    [
        (of_another_ca, Stage.TLS, "it does not know the CA", "unknown_ca", "its certificate was issued by another CA"),
        (expired, Stage.TLS, "it has expired", "expired", "its certificate has expired"),
        (not_yet, Stage.TLS, "it is not valid", "not_yet_valid", "its certificate is not valid yet"),
        (self_signed, Stage.TLS, "it does not know the CA", "self_signed", "its certificate is self-signed"),
        (a_servers, Stage.TLS, "it was not issued for this side", "purpose", "its certificate was not issued for this"),
        (
            of_another_control_plane,
            Stage.UPGRADE,
            "403 your certificate is of control plane shoot--b, this server belongs to shoot--a",
            "control_plane",
            "your certificate is of control plane shoot--b",
        ),
        (a_seed_servers_name, Stage.UPGRADE, "it may not act as a client", "role", "may not act as a client"),
        (without_name, Stage.UPGRADE, "has 0 URI names", "identity", "has 0 URI names"),
        (with_two_names, Stage.UPGRADE, "has 2 URI names", "identity", "has 2 URI names"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_certificate_that_is_refused(
    pki: Pki,
    stranger: Pki,
    server: Server,
    files: Callable[[Pki, Pki], TlsFiles],
    stage: Stage,
    words: str,
    cause: str,
    detail: str,
) -> None:
    exc = await failure(config(files(pki, stranger), server.address))
    assert (exc.stage, exc.final) == (stage, True)
    assert words in str(exc)
    turned = await server.record.until(Turned)
    assert turned.counts == ((cause, 1),)
    assert detail in turned.last_detail
    assert not server.record.of(Up)


async def test_no_certificate_at_all(pki: Pki, server: Server) -> None:
    context = ssl.create_default_context(cafile=str(pki.directory / "ca.crt"))
    reader, writer = await asyncio.open_connection(*server.address, ssl=context, server_hostname=SERVER_NAME)
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        await reader.read(1)
    writer.transport.abort()
    turned = await server.record.until(Turned)
    assert turned.counts == (("no_certificate", 1),)
    assert turned.last_detail.endswith("it sent no certificate")


async def test_the_servers_words_reach_us_through_the_upgrade(pki: Pki) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = pki.server()
    context.load_cert_chain(files.certificate, files.key)
    for head, final, words in (
        (
            b"HTTP/1.1 503 down\r\nProxy-Status: x; error=y\r\n\r\n",
            False,
            "answered 503 down (Proxy-Status: x; error=y)",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n", False, "the server answered 200 OK"),
        (b"HTTP/1.1 101 Ok\r\n\r\n", False, "the server answered 101 without"),
        (b"\x00\x01\x02\r\n\r\n", False, "not an HTTP/1.1 head"),
    ):
        async with stub(answering(head), context) as address:
            exc = await failure(config(pki.client(), address))
        assert (exc.stage, exc.final) == (Stage.UPGRADE, final)
        assert words in str(exc)


async def test_a_server_that_refuses_us_and_is_gone_at_once(
    pki: Pki, stranger: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Envoy does that: when we send our request, the alert is there and the connection is not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = pki.server()
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(stranger.server().ca)
    context.verify_mode = ssl.CERT_REQUIRED
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)
        loop.call_soon_threadsafe(gone.set)

    send = tls.send

    async def late(stream: ssl.SSLSocket, data: bytes) -> None:
        await gone.wait()
        await send(stream, data)

    monkeypatch.setattr(tls, "send", late)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = loop.run_in_executor(None, serve, listener)
        exc = await failure(config(pki.client(), listener.getsockname()))
        await serving
    assert (exc.stage, exc.final) == (Stage.TLS, True)
    assert str(exc) == "the other side refused our certificate: it does not know the CA that issued it"
