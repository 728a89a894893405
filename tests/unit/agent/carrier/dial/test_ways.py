"""From a name to a link: DNS, TCP and proxies, each failure with its stage and cause in words."""

import asyncio
import ssl
from pathlib import Path

import pytest

from agent.carrier import dial as module
from agent.carrier.api import Proxy, Up
from agent.carrier.dial import Stage, dial, via
from agent.carrier.tls import Credentials
from lab.loopback import SERVER_NAME, Pki, Server, dial_config, free_port
from tests.unit.agent.carrier.dial.conftest import answering, config, failure, forwarding, stub


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
