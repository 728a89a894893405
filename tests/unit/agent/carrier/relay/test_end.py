"""How a stream ends: who closed it, who is dead, what was no TLS or no capsule; and nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from pathlib import Path

import pytest

from agent.carrier import capsule, liveness
from agent.carrier import relay as relay_module
from agent.carrier.capsule import Control, Ping
from tests.unit.agent.carrier.conftest import FakeWireGuard, Streams
from tests.unit.agent.carrier.relay.conftest import Running, Start, datagram


async def test_the_peer_closes(start: Start) -> None:
    running = start()
    running.peer.stream.close()
    assert await running.end() == "eof"


async def test_a_reset_ends_the_stream_too(start: Start) -> None:
    running = start()
    running.peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    running.peer.stream.close()
    assert await running.end() in ("eof", "reset"), "the ssl module shows a reset as an end where it can"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "reset"),
        (BrokenPipeError(32, "Broken pipe"), "reset"),
        (OSError(113, "No route to host"), "reset"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "reset"),
        (TimeoutError(110, "Connection timed out"), "dead"),
        (ssl.SSLError(1, "[SSL: BAD_RECORD] bad record"), "tls"),
    ],
)
def test_errors_of_the_stream_in_words(error: OSError, reason: str) -> None:
    assert relay_module._cause(error)[0] == reason
    assert relay_module._cause(error)[1]


async def test_an_end_inside_a_capsule_is_malformed(start: Start) -> None:
    running = start()
    await running.peer.send(datagram(b"whole") + datagram(b"cut")[:-1])
    running.peer.stream.close()
    assert await running.end() == "malformed"


async def test_garbage_is_malformed_and_the_stream_is_closed(start: Start) -> None:
    running = start()
    await running.peer.send(b"\x00\x00")
    assert await running.end() == "malformed"
    assert "context id" in running.ends[0][1]
    assert running.relay._stream.fileno() == -1


async def test_bytes_that_are_not_tls(start: Start) -> None:
    running = start()
    raw = socket.socket(fileno=running.peer.stream.detach())
    raw.send(b"GET / HTTP/1.1\r\n\r\n")
    assert await running.end() == "tls"
    raw.close()


async def test_the_last_message_arrives_although_data_is_unread(start: Start) -> None:
    running = start()
    await running.peer.send(datagram(bytes(1000)) * 100)
    running.relay.send_control("refused")
    running.relay.close("refused", "why")
    await running.peer.send(datagram(bytes(1000)) * 10)
    await running.peer.ended()
    assert running.peer.items[-1] == Control("refused")
    assert await running.end() == "refused"
    assert running.ends == [("refused", "why")]


async def test_close_is_told_once_and_not_from_inside_the_call(start: Start) -> None:
    running = start()
    running.relay.close("one")
    running.relay.close("two")
    assert running.ends == []
    assert await running.end() == "one"
    running.relay.send_control("x")
    running.relay.retire(0)
    await asyncio.sleep(0.01)
    assert len(running.ends) == 1


async def test_an_owner_may_close_from_inside_a_control_message(start: Start) -> None:
    running = start()
    relay = running.relay
    object.__setattr__(relay._hooks, "control", lambda text: relay.close("flood", text))
    await running.peer.send(capsule.encode_control("too much") * 10 + datagram(b"x"))
    assert await running.end() == "flood"
    assert running.ends == [("flood", "too much")]


async def test_a_silent_peer_is_dead(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PASSIVE_QUIET_S", 0.3)
    monkeypatch.setattr(liveness, "IMPATIENT_S", 0.05)
    running = start()
    await running.peer.until(lambda: running.relay.stats().rtt_s)
    begin = time.monotonic()
    assert await running.end() == "dead"
    assert 0.4 <= time.monotonic() - begin < 4.0
    running.peer.read()
    assert [item.opaque[-1] for item in running.peer.of(Ping)] == [2, 3, 4]


async def test_a_peer_that_never_says_anything_is_dead_from_the_start(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "IMPATIENT_S", 0.05)
    assert await start().end() == "dead"


async def test_a_dead_path_under_traffic_is_noticed_before_the_quiet_is_over(
    start: Start, wireguard: FakeWireGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "IMPATIENT_S", 0.1)
    running = start()
    await running.peer.until(lambda: running.relay.stats().rtt_s)
    begin = time.monotonic()
    wireguard.send(running.port.local_port, bytes(500))
    assert await running.end() == "dead"
    assert 0.35 <= time.monotonic() - begin < 4.0, "before QUIET_S is over"


async def test_a_peer_that_answers_stays(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PASSIVE_QUIET_S", 0.05)
    monkeypatch.setattr(liveness, "IMPATIENT_S", 0.02)
    running = start()
    answered = 0
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        running.peer.read()
        for ping in running.peer.of(Ping)[answered:]:
            await running.peer.send(capsule.encode_pong(ping.opaque))
            answered += 1
        await asyncio.sleep(0.005)
    assert answered >= 5 and not running.ends
    assert running.relay.stats().rtt_s is not None


async def test_a_worn_stream_is_reported_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "LIFETIME_S", 0.05)
    running = start()
    await asyncio.sleep(0.2)
    assert running.worn == 1 and not running.ends


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_streams_leave_no_descriptor_behind(streams: Streams, wireguard: FakeWireGuard) -> None:
    before = descriptors()
    for n in range(20):
        running = Running(streams, wireguard)
        wireguard.send(running.port.local_port, b"x")
        await running.peer.until_payloads()
        if n % 2:
            running.relay.close("test")
        running.peer.stream.close()
        await running.end()
        running.port.close()
    await asyncio.sleep(0.05)
    assert descriptors() == before
