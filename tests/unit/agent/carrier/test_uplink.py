"""The kept stream: what it survives, what it costs, and how soon it is back."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.carrier import streams, uplink
from agent.carrier.api import DialFailed, Down, Message, TlsFiles, Up
from lab import loopback
from lab.loopback import Client, Echo, Pki, Server, free_port


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "DRAIN_S", 0.2)
    monkeypatch.setattr(uplink, "CERTIFICATE_POLL_S", 0.1)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    with Echo() as running:
        yield running


@pytest.fixture
async def server(pki: Pki, echo: Echo) -> AsyncIterator[Server]:
    async with loopback.server(pki.server(), echo) as running:
        yield running


@pytest.fixture
async def client(pki: Pki, server: Server) -> AsyncIterator[Client]:
    async with loopback.client(pki.client(), server.address) as running:
        await running.record.until(Up)
        yield running


@asynccontextmanager
async def restarted(pki: Pki, echo: Echo, address: tuple[str, int]) -> AsyncIterator[Server]:
    async with loopback.server(pki.server(), echo, address) as running:
        yield running


@asynccontextmanager
async def traffic(client: Client) -> AsyncIterator[None]:
    """500 datagrams a second, from some time before to some time after."""
    running = asyncio.ensure_future(client.pinger.run(lambda: client.relay_port, 30, per_s=500))
    await asyncio.sleep(0.1)
    yield
    running.cancel()
    await asyncio.wait((running,))


async def test_datagrams_of_every_size_cross(client: Client) -> None:
    pinger = client.pinger
    for size in (12, 13, 148, 1420, 1452, 9000):
        await pinger.exchange(client.relay_port, size)


async def test_control_messages_cross_both_ways(client: Client, server: Server) -> None:
    client.streams.send(client.record.last(Up).stream, '{"type":"enroll"}')
    heard = await server.record.until(Message)
    assert (heard.stream, heard.text) == (server.record.last(Up).stream, '{"type":"enroll"}')
    server.streams.send(heard.stream, '{"type":"grant"}')
    assert (await client.record.until(Message)).text == '{"type":"grant"}'


async def test_a_redial_loses_nothing(client: Client, server: Server) -> None:
    async with traffic(client):
        for count in range(2, 7):
            client.uplink.redial()
            await client.record.until(Up, count)
            await asyncio.sleep(0.1)
    assert await client.pinger.lost() == 0
    await client.record.until(Down, 5)
    assert {down.reason for down in client.record.of(Down)} <= {"retired", "eof"}


async def test_a_worn_stream_is_replaced(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    number = client.record.last(Up).stream
    worn = client.streams._live[number].relay._hooks.worn
    assert worn is not None
    worn()
    await client.record.until(Up, 2)
    assert (await client.record.until(Down)).stream == number


async def test_a_server_that_is_back_is_used_within_a_second(pki: Pki, echo: Echo) -> None:
    address = ("127.0.0.1", free_port())
    async with loopback.client(pki.client(), address) as client:
        loop = asyncio.get_running_loop()
        await client.record.until(DialFailed, 5, timeout_s=10)
        assert max(failed.retry_in_s for failed in client.record.of(DialFailed)) <= 0.8
        assert {failed.stage for failed in client.record.of(DialFailed)} == {"tcp"}
        back = loop.time()
        async with restarted(pki, echo, address):
            await client.record.until(Up)
            assert loop.time() - back < 3.0


async def test_the_longest_pauses_after_many_failures() -> None:
    pace = uplink._Pace()
    pace._away.uniform = pace._refused.uniform = lambda low, high: high
    away = [pace.failed(final=False) for _ in range(20)]
    refused = [pace.failed(final=True) for _ in range(20)]
    assert away[0] <= 0.05 and away[-1] == max(away) == 0.8
    assert refused[0] <= 0.5 and refused[-1] == max(refused) == 30.0
    pace.connected()
    assert pace.failed(final=True) <= 0.5
    assert pace.failed(final=False) == 0.8, "only a stream that lasted ends an outage"
    pace.lost(settled=True)
    assert pace.failed(final=False) <= 0.05


async def test_a_lost_server_is_dialled_again_at_once(pki: Pki, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink, "SETTLED_S", 0.0)
    address = ("127.0.0.1", free_port())
    async with restarted(pki, echo, address):
        made = loopback.client(pki.client(), address)
        client = await made.__aenter__()
        await client.record.until(Up)
    down = await client.record.until(Down)
    loop = asyncio.get_running_loop()
    ended = loop.time()
    await client.record.until(DialFailed)
    assert loop.time() - ended < 3.0
    assert down.reason in ("eof", "reset")
    async with restarted(pki, echo, address):
        await client.record.until(Up, 2)
        await client.pinger.exchange(client.relay_port)
        await made.__aexit__(None, None, None)


async def test_a_refusal_is_asked_about_less_and_less(pki: Pki, server: Server) -> None:
    async with loopback.client(pki.odd(), server.address) as client:
        await client.record.until(DialFailed, 2)
        ceilings = [uplink.REFUSED_FIRST_S * 2**n for n in range(len(client.record.of(DialFailed)))]
        for failed, ceiling in zip(client.record.of(DialFailed), ceilings, strict=True):
            assert failed.stage == "upgrade" and failed.retry_in_s <= ceiling


async def test_an_error_that_nobody_foresaw_costs_one_attempt(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(uplink, "dial", broken)
        client.uplink.redial()
        failed = await client.record.until(DialFailed)
        assert failed.detail == "a bug in Rhizome: RuntimeError('unforeseen')"
    await client.pinger.exchange(client.relay_port)
    await client.record.until(Up, 2)


async def test_close_holds_the_next_dial_back_and_redial_does_not_wait(client: Client) -> None:
    client.uplink.close_stream(client.record.last(Up).stream, "refused", 30.0)
    assert (await client.record.until(Down)).reason == "refused"
    await asyncio.sleep(0.2)
    assert len(client.record.of(Up)) == 1
    client.uplink.redial()
    await client.record.until(Up, 2)


async def test_new_certificate_files_make_a_new_stream(
    pki: Pki, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = TlsFiles(*(str(tmp_path / name) for name in ("ca.crt", "client.crt", "client.key")))
    copy(pki.client("rotated"), own)
    async with loopback.client(own, server.address) as client:
        await client.record.until(Up)
        torn(own)
        await asyncio.sleep(0.3)
        assert len(client.record.of(Up)) == 1, "a torn file changes nothing"
        copy(pki.client("rotated"), own)
        await client.record.until(Up, 2)
        await client.record.until(Down)


async def test_files_that_come_late_are_not_waited_for_longer_than_needed(
    pki: Pki, server: Server, tmp_path: Path
) -> None:
    own = TlsFiles(*(str(tmp_path / name) for name in ("ca.crt", "client.crt", "client.key")))
    async with loopback.client(own, server.address) as client:
        failed = await client.record.until(DialFailed)
        assert (failed.stage, failed.detail) == ("tls", f"cannot read {own.ca}: No such file or directory")
        copy(pki.client(), own)
        await client.record.until(Up, timeout_s=2)


def copy(source: TlsFiles, target: TlsFiles) -> None:
    for name in ("ca", "certificate", "key"):
        Path(getattr(target, name)).write_bytes(Path(getattr(source, name)).read_bytes())


def torn(files: TlsFiles) -> None:
    Path(files.certificate).write_text("-----BEGIN CERTIFICATE-----\n")


async def test_another_server_is_changed_over_to_without_loss(client: Client, pki: Pki, echo: Echo) -> None:
    async with loopback.server(pki.server(), echo) as second:
        async with traffic(client):
            before = client.relay_port
            client.uplink.reconfigure(replace(client.uplink.config, port=second.address[1]))
            assert client.relay_port == before
            await client.record.until(Up, 2)
            await second.record.until(Up)
            await asyncio.sleep(0.1)
        assert await client.pinger.lost() == 0
        assert (await client.record.until(Down)).reason in ("retired", "eof")


async def test_the_old_stream_stays_when_the_new_configuration_does_not_work(client: Client) -> None:
    client.uplink.reconfigure(replace(client.uplink.config, port=free_port()))
    await client.record.until(DialFailed, 2)
    assert await client.pinger.exchange(client.relay_port) < 1
    assert not client.record.of(Down)


async def test_another_wireguard_port_keeps_the_relay_port(client: Client) -> None:
    before = client.relay_port
    with loopback.Pinger() as other:
        client.uplink.reconfigure(replace(client.uplink.config, wireguard_port=other.port))
        assert (await client.record.until(Down)).reason == "replaced"
        await client.record.until(Up, 2)
        assert client.relay_port == before
        await other.exchange(before)


async def test_another_target_counts_from_the_next_stream_on(client: Client) -> None:
    config = replace(client.uplink.config, target="wg-0a1b2c3d")
    assert client.uplink.runs(config) and client.uplink.config == config
    await asyncio.sleep(0.1)
    assert len(client.record.of(Up)) == 1 and not client.record.of(Down)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


async def test_a_relay_port_that_is_taken_is_not_insisted_on(client: Client, taken: int) -> None:
    client.uplink.reconfigure(replace(client.uplink.config, relay_port=taken))
    await client.record.until(Up, 2)
    assert client.relay_port not in (0, taken)
    await client.pinger.exchange(client.relay_port)


async def test_the_same_configuration_is_no_change(client: Client) -> None:
    config = client.uplink.config
    assert client.uplink.runs(config)
    assert client.uplink.runs(replace(config, relay_port=client.relay_port))
    assert not client.uplink.runs(replace(config, relay_port=1))
    assert not client.uplink.runs(replace(config, host="other"))


async def test_a_flood_of_control_messages_ends_the_stream(client: Client, server: Server) -> None:
    number = client.record.last(Up).stream
    for _ in range(200):
        client.streams.send(number, '{"type":"facts"}')
    assert (await server.record.until(Down)).reason == "flood"
    assert len(server.record.of(Message)) <= 64


async def test_what_a_stream_heard_is_replayed(client: Client, server: Server) -> None:
    number = client.record.last(Up).stream
    for text in ('{"type":"enroll","n":1}', '{"type":"facts"}', '{"type":"enroll","n":2}', "no json"):
        client.streams.send(number, text)
    heard = await server.record.until(Message, 4)
    up = server.streams.up(heard.stream)
    assert up is not None and up.replay == ('{"type":"facts"}', '{"type":"enroll","n":2}')


async def test_what_has_ended_is_ignored(client: Client) -> None:
    client.streams.send(999, "{}")
    client.streams.close(999, "x")
    client.streams.retire(999)
    assert client.streams.up(999) is None
    client.uplink.close_stream(999, "x", 30.0)
    client.uplink.redial()
    await client.record.until(Up, 2)


async def test_counters_survive_their_streams(client: Client) -> None:
    await client.pinger.exchange(client.relay_port, 1000)
    before = client.streams.stats()
    assert before.tx_packets >= 1 and before.rx_bytes >= 1000
    client.uplink.redial()
    await client.record.until(Down)
    assert client.streams.stats().tx_packets >= before.tx_packets
