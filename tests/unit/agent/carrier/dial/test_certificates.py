"""TLS and upgrade: what the server shows, and what it says about us. The cause is clear on both sides."""

import asyncio
import datetime as dt
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.carrier import tls
from agent.carrier.api import TlsFiles, Turned, Up
from agent.carrier.dial import Stage
from agent.pki import make_ca
from lab import loopback
from lab.loopback import CONTROL_PLANE, SERVER_NAME, Echo, Pki, Server
from tests.unit.agent.carrier.dial.conftest import answering, config, failure, stub

YEAR = dt.timedelta(days=365)


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
