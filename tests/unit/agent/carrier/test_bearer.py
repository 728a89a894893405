"""Clients that show a token: read from its file at each dial, judged by the daemon, never repeated by anybody."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.carrier import accept, bearer
from agent.carrier.api import Admit, DialFailed, Presented, TlsFiles, Turn, Up
from agent.carrier.bearer import TOKEN_MAX_CHARS, read_token, token_of
from agent.carrier.upgrade import Rejection, Request, upgrade_exchange
from agent.errors import ConfigError
from agent.onetime import parts
from lab import loopback
from lab.loopback import SERVER_NAME, Client, Echo, Pki, Server

TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJub2RlLTEifQ.c2lnbmF0dXJl"
NODE = "spiffe://shoot--a/shoot-client/node-1"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(autouse=True)
def _silence_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "DEFER_ACCEPT_S", 0)


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[Server]:
    with Echo() as echo:
        async with loopback.server(pki.server(), echo, tokens=True) as running:
            yield running


@pytest.fixture
async def client(pki: Pki, server: Server, tmp_path: Path) -> AsyncIterator[Client]:
    (tmp_path / "token").write_text(TOKEN + "\n")
    with loopback.Pinger() as pinger:
        config = loopback.dial_config(TlsFiles(str(pki.directory / "ca.crt")), pinger.port, server.address)
        made = Client(replace(config, token_file=str(tmp_path / "token")), pinger)
        yield made
        made.uplink.close()
        await asyncio.sleep(0.01)


async def test_a_token_takes_the_place_of_a_certificate(server: Server, client: Client) -> None:
    asked = await server.record.until(Presented)
    assert asked.token == TOKEN
    server.downlink.answer(Admit(asked.visit, NODE, 1_900_000_000.0))
    up = await server.record.until(Up)
    assert (up.identity, up.credential_ends_at) == (NODE, 1_900_000_000.0)
    await client.pinger.exchange(client.relay_port)


async def test_the_file_is_read_at_each_dial(server: Server, client: Client, tmp_path: Path) -> None:
    """Through a symlink that is swapped, as kubelet does it."""
    asked = await server.record.until(Presented)
    (tmp_path / "next").write_text("second")
    (tmp_path / "link").symlink_to(tmp_path / "next")
    (tmp_path / "link").replace(tmp_path / "token")
    server.downlink.answer(Turn(asked.visit, 401, "token_expired", "your token is refused: it has expired"))
    failed = await client.record.until(DialFailed)
    assert failed.stage == "upgrade" and "401 your token is refused: it has expired" in failed.detail
    client.uplink.redial()
    assert (await server.record.until(Presented, 2)).token == "second"


@pytest.mark.parametrize(
    ("identity", "cause"),
    [
        ("spiffe://shoot--b/shoot-client/node-1", "control_plane"),
        ("spiffe://shoot--a/seed-server", "role"),
        ("spiffe://shoot--a/observer/grafana", "role"),
        ("node-1", "identity"),
    ],
)
async def test_not_even_the_daemon_admits_strangers(server: Server, client: Client, identity: str, cause: str) -> None:
    asked = await server.record.until(Presented)
    server.downlink.answer(Admit(asked.visit, identity, 1_900_000_000.0))
    await client.record.until(DialFailed)
    assert dict(server.downlink.turned().counts) == {cause: 1}


async def test_without_a_daemon_nobody_is_let_in(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bearer, "JUDGED_WITHIN_S", 0.2)
    failed = await client.record.until(DialFailed)
    assert "503 the server cannot check tokens just now" in failed.detail
    late = server.record.last(Presented)
    server.downlink.answer(Admit(late.visit, NODE, 1_900_000_000.0))
    assert not server.record.of(Up)


async def test_a_token_is_in_no_log_event_or_count(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asked = await server.record.until(Presented)
    server.downlink.answer(Turn(asked.visit, 403, "token_subject", "no"))
    await client.record.until(DialFailed)
    shown = repr(server.record.events) + repr(client.record.events) + repr(server.downlink.turned()) + caplog.text
    assert TOKEN not in shown and "turned away" in shown


async def test_a_certificate_alone_is_asked_for_where_tokens_are_not_let_in(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with Echo() as echo, loopback.Pinger() as pinger:
        async with loopback.server(pki.server(), echo) as server:
            config = loopback.dial_config(TlsFiles(str(pki.directory / "ca.crt")), pinger.port, server.address)
            client = Client(replace(config, token_file=str(tmp_path / "token")), pinger)
            failed = await client.record.until(DialFailed)
            client.uplink.close()
            await asyncio.sleep(0.01)
            assert failed.stage == "tls"
            assert not server.record.of(Presented)


async def _answer(server: Server, pki: Pki, request: bytes, files: TlsFiles | None = None) -> str:
    context = ssl.create_default_context(cafile=str(pki.directory / "ca.crt"))
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    reader, writer = await asyncio.open_connection(*server.address, ssl=context, server_hostname=SERVER_NAME)
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            return (await reader.readline()).decode()
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def test_one_credential_and_no_more(server: Server, pki: Pki) -> None:
    assert "401 you showed neither" in await _answer(server, pki, upgrade_exchange(SERVER_NAME).request)
    both = upgrade_exchange(SERVER_NAME, TOKEN).request
    assert "400 you showed a certificate and a token" in await _answer(server, pki, both, pki.client())
    other = both.replace(b"/wg/", b"/10.0.0.1/")
    assert "403 " in await _answer(server, pki, other)
    assert not server.record.of(Presented), "nobody was asked about those"


async def test_a_broken_line_with_a_token_is_not_repeated(server: Server, pki: Pki) -> None:
    broken = upgrade_exchange(SERVER_NAME, TOKEN).request.replace(b"Authorization:", b"Authorization :")
    answer = await _answer(server, pki, broken)
    assert answer.startswith("HTTP/1.1 400 ") and TOKEN not in answer
    assert TOKEN not in server.downlink.turned().last_detail


@pytest.mark.parametrize(
    "values",
    [
        ("Basic YTpi",),
        ("Bearer",),
        ("Bearer a b",),
        ("Bearer \xe9",),
        ("Bearer a", "Bearer b"),
        ("Bearer " + "a" * (TOKEN_MAX_CHARS + 1),),
    ],
)
def test_what_is_no_bearer_token(values: tuple[str, ...]) -> None:
    request = Request("GET", "/", "1.1", tuple(("authorization", value) for value in values), b"")
    rejected = token_of(request)
    assert isinstance(rejected, Rejection) and rejected.cause == "token_malformed"


@pytest.mark.parametrize("text", ["", "two words", "a\nb", "x" * (TOKEN_MAX_CHARS + 1), "\u00e9"])
def test_what_is_no_token_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_token(str(tmp_path / "token"))
    assert not text or text not in str(raised.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_token(str(tmp_path / "missing"))


ONE_TIME = "rzt1_" + "A" * 43


def test_a_one_time_token_is_made_ours_before_anybody_sees_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(ONE_TIME + "\n")
    shown = read_token(str(file))
    known = parts(shown)
    assert known is not None and known[0] == ONE_TIME
    assert file.read_text() == f"{shown}\n" and file.stat().st_mode & 0o777 == 0o600
    assert read_token(str(file)) == shown, "the same one at each dial"
    (tmp_path / "other").write_text(ONE_TIME)
    assert read_token(str(tmp_path / "other")) != shown, "another one on each machine"


@pytest.mark.parametrize("text", ["rzt1_short", ONE_TIME + ".x", ONE_TIME + "A"])
def test_a_one_time_token_that_is_not_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigError, match="copy it again") as raised:
        read_token(str(tmp_path / "token"))
    assert text not in str(raised.value)


def test_a_one_time_token_is_not_shown_when_nothing_could_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(ONE_TIME)
    (tmp_path / "link").symlink_to(tmp_path / "token")
    with pytest.raises(ConfigError, match="symbolic link"):
        read_token(str(tmp_path / "link"))

    def fail(path: Path, data: bytes, mode: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(bearer, "write_atomically", fail)
    with pytest.raises(ConfigError, match="Read-only file system: give the client a directory of its own"):
        read_token(str(tmp_path / "token"))


async def test_the_daemons_ticket_comes_back_with_the_stream(server: Server, client: Client) -> None:
    asked = await server.record.until(Presented)
    server.downlink.answer(Admit(asked.visit, NODE, 1_900_000_000.0, "own abc"))
    assert (await server.record.until(Up)).ticket == "own abc"
