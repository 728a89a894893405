"""The relay over real sockets: what goes through, what a hostile or dead peer can do, and how it ends."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from agent.carrier import capsule, liveness, outbox, queue
from agent.carrier import receiver as receiver_module
from agent.carrier import relay as relay_module
from agent.carrier.capsule import Ack, Control, Ping, Pong
from agent.carrier.port import UdpPort
from agent.carrier.relay import Relay
from agent.carrier.stats import RelayStats
from agent.carrier.window import Window
from agent.errors import Unsupported
from tests.unit.agent.carrier.conftest import FakeWireGuard, Streams


def datagram(payload: bytes) -> bytes:
    return capsule.head(len(payload)) + payload


class Running:
    """A relay, its UDP port, and what it told its owner."""

    def __init__(
        self,
        streams: Streams,
        wireguard: FakeWireGuard,
        *,
        early: bytes = b"",
        extensions: bool = True,
        port: UdpPort | None = None,
    ) -> None:
        stream, self.peer = streams()
        self.port = port or UdpPort(wireguard.port)
        self.controls: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.worn = 0
        self.relay = Relay(
            stream,
            self.port,
            early=early,
            extensions=extensions,
            on_control=self.controls.append,
            on_closed=lambda reason, detail: self.ends.append((reason, detail)),
            on_worn=self._on_worn,
        )
        self.relay.start()

    async def until_received(self, count: int) -> None:
        await self.peer.until(lambda: self.relay.stats().rx_packets >= count)

    @property
    def window(self) -> Window:
        """What may be on its way; only a stream with extensions has one."""
        assert self.relay._sender.window is not None
        return self.relay._sender.window

    def _on_worn(self) -> None:
        self.worn += 1

    async def end(self, timeout_s: float = 5.0) -> str:
        async with asyncio.timeout(timeout_s):
            while not self.ends:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert len(self.ends) == 1
        return self.ends[0][0]


class Start(Protocol):
    def __call__(self, *, early: bytes = ..., extensions: bool = ..., port: UdpPort | None = ...) -> Running: ...


@pytest.fixture
async def start(streams: Streams, wireguard: FakeWireGuard) -> AsyncIterator[Start]:
    started: list[Running] = []

    def make(*, early: bytes = b"", extensions: bool = True, port: UdpPort | None = None) -> Running:
        running = Running(streams, wireguard, early=early, extensions=extensions, port=port)
        started.append(running)
        return running

    yield make
    for running in started:
        running.relay.close("test")
        running.port.close()
    await asyncio.sleep(0)


async def test_datagrams_of_all_sizes_both_ways(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    sizes = [1, 0, 32, 148, 1452, 1452, 1452, 100, 9000, 16000, 1452, *random.Random(1).sample(range(2000), 100)]
    packets = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    wireguard.send(running.port.local_port, *packets)
    await running.peer.until(lambda: len(running.peer.payloads) == len(packets))
    assert running.peer.payloads == packets
    await running.peer.send(b"".join(map(datagram, packets)))
    assert await wireguard.until(len(packets)) == packets
    stats = running.relay.stats()
    assert (stats.tx_packets, stats.rx_packets) == (len(packets), len(packets))
    assert stats.tx_bytes == stats.rx_bytes == sum(sizes)
    assert stats.drops == () and running.port.stats() == RelayStats()


async def test_a_burst_arrives_in_order_and_each_record_is_full(
    start: Start, wireguard: FakeWireGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "CODEL_INTERVAL_S", 60.0)  # a machine at full load looks like a slow path
    monkeypatch.setattr(queue, "CAP_S", 60.0)
    running = start()
    packets = [n.to_bytes(4, "big") + bytes(1448) for n in range(600)]
    wireguard.send(running.port.local_port, *packets)
    await running.peer.until(lambda: len(running.peer.payloads) == 600)
    assert running.peer.payloads == packets
    running.peer.stream.setblocking(False)
    await running.peer.send(b"".join(map(datagram, packets)))
    assert await wireguard.until(600) == packets


async def test_a_datagram_too_large_for_us_is_dropped_and_counted(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    wireguard.send(running.port.local_port, bytes(16_001), bytes(60_000), b"behind")
    await running.peer.until(lambda: running.peer.payloads)
    assert running.peer.payloads == [b"behind"]
    large = b"\x00" + capsule.encode_varint(20_001) + b"\x00" + bytes(20_000)
    await running.peer.send(large + datagram(b"behind"))
    assert await wireguard.until(1) == [b"behind"]
    assert dict(running.relay.stats().drops) == {"oversize": 3}


async def test_what_was_read_with_the_http_head_comes_first(start: Start, wireguard: FakeWireGuard) -> None:
    whole = datagram(b"first") + capsule.encode_control("hello") + datagram(b"second")
    running = start(early=whole[:-3])
    await running.peer.send(whole[-3:] + datagram(b"third"))
    assert await wireguard.until(3) == [b"first", b"second", b"third"]
    assert running.controls == ["hello"]


async def test_control_messages_both_ways(start: Start) -> None:
    running = start()
    texts = ["", '{"type":"enroll"}', "ö" * (capsule.MAX_CONTROL_BYTES // 2)]
    for text in texts:
        running.relay.send_control(text)
    await running.peer.until(lambda: len(running.peer.of(Control)) == 3)
    assert running.peer.items == [Control(text) for text in texts]
    await running.peer.send(b"".join(map(capsule.encode_control, texts)))
    await running.peer.until(lambda: len(running.controls) == 3)
    assert running.controls == texts
    with pytest.raises(ValueError, match="at most 65536"):
        running.relay.send_control("x" * (capsule.MAX_CONTROL_BYTES + 1))


async def test_received_data_is_acknowledged_within_milliseconds(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    await running.peer.send(datagram(b"x" * 10))
    await running.peer.until(lambda: running.peer.items)
    assert running.peer.items == [Ack(10)]
    await running.peer.send(datagram(bytes(1000)) * 40)
    await wireguard.until(41)
    await running.peer.until(lambda: Ack(40_010) in running.peer.items)


async def test_a_ping_is_answered_behind_the_ack_for_what_came_before_it(start: Start) -> None:
    running = start()
    await running.peer.send(datagram(b"x" * 10) + capsule.encode_ping(b"01234567"))
    await running.peer.until(lambda: running.peer.of(Pong))
    assert running.peer.items == [Ack(10), Pong(b"01234567")]


async def test_a_round_trip_is_measured_at_the_start_and_with_traffic(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    await running.peer.until(lambda: running.relay.stats().rtt_s)
    at_start = running.relay.stats().rtt_s
    assert at_start is not None
    running.peer.acks = False
    wireguard.send(running.port.local_port, bytes(100))
    await running.peer.until(lambda: running.peer.payloads)
    await asyncio.sleep(0.2)
    await running.peer.send(capsule.encode_ack(100))
    await running.peer.until(lambda: running.relay.stats().queue_delay_s is not None)
    stats = running.relay.stats()
    assert stats.queue_delay_s is not None
    assert at_start < 0.1 < stats.queue_delay_s < 1
    assert stats.rtt_s == pytest.approx(at_start + stats.queue_delay_s / 8, abs=0.02)


async def test_a_peer_without_extensions_gets_datagram_capsules_only(
    start: Start, wireguard: FakeWireGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PASSIVE_QUIET_S", 0.01)
    monkeypatch.setattr(liveness, "IMPATIENT_S", 0.01)
    running = start(extensions=False)
    running.peer.acks = False
    ours = capsule.encode_ping(bytes(8)) + capsule.encode_control("x") + capsule.encode_ack(10**9)
    await running.peer.send(ours + datagram(bytes(1400)) * 50)
    await wireguard.until(50)
    wireguard.send(running.port.local_port, *[bytes(1400)] * 200)
    await running.peer.until(lambda: len(running.peer.payloads) == 200)
    await asyncio.sleep(0.1)
    running.peer.read()
    assert running.peer.raw == datagram(bytes(1400)) * 200
    assert running.controls == [] and running.ends == []
    with pytest.raises(Unsupported):
        running.relay.send_control("x")


# How it ends.


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


# One port, several streams.


async def test_make_before_break(start: Start, wireguard: FakeWireGuard) -> None:
    old = start()
    wireguard.send(old.port.local_port, b"one")
    await old.peer.until(lambda: old.peer.payloads)
    new = start(port=old.port)
    old.relay.retire(0.2)
    wireguard.send(old.port.local_port, b"two")
    await new.peer.until(lambda: new.peer.payloads)
    await old.peer.send(datagram(b"late"))
    await new.peer.send(datagram(b"new"))
    assert sorted(await wireguard.until(2)) == [b"late", b"new"]
    assert await old.end() == "retired"
    wireguard.send(old.port.local_port, b"three")
    await new.peer.until(lambda: len(new.peer.payloads) == 2)
    assert (old.peer.payloads, new.peer.payloads) == ([b"one"], [b"two", b"three"])


async def test_without_a_stream_only_the_newest_initiation_is_kept(start: Start, wireguard: FakeWireGuard) -> None:
    first = start()
    first.relay.close("test")
    initiations = [b"\x01\0\0\0" + bytes([n]) * 144 for n in range(3)]
    wireguard.send(first.port.local_port, b"data", initiations[0], initiations[1], b"more", initiations[2])
    await asyncio.sleep(0.02)
    second = start(port=first.port)
    await second.peer.until(lambda: second.peer.payloads)
    assert second.peer.payloads == [initiations[2]]
    assert first.port.stats().drops == (("no_stream", 4),)


async def test_wireguard_may_be_down_for_a_while(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    wireguard.sock.close()
    for count in (1, 2, 3):
        await running.peer.send(datagram(b"lost"))
        await running.until_received(count)
        await asyncio.sleep(0.01)
    again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    again.bind(("127.0.0.1", wireguard.port))
    wireguard.sock = again
    await running.peer.send(datagram(b"arrives"))
    assert await wireguard.until(1) == [b"arrives"]
    wireguard.send(running.port.local_port, b"back")
    await running.peer.until(lambda: running.peer.payloads)
    assert not running.ends


# Hostile peers.


async def test_a_peer_that_never_reads_is_bounded_and_holds_up_nobody(start: Start, wireguard: FakeWireGuard) -> None:
    stuck, other = start(), start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        wireguard.send(stuck.port.local_port, *[bytes(1452)] * 50)
        await asyncio.sleep(0)
    started = time.monotonic()
    wireguard.send(other.port.local_port, b"prompt")
    await other.peer.until(lambda: other.peer.payloads)
    assert time.monotonic() - started < 3
    sender = stuck.relay._sender
    assert sender.queue.waiting_bytes <= 1_500_000 and len(sender.queue) <= 1000
    drops = dict(stuck.relay.stats().drops)
    assert drops["cap"] > 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024, "KiB"


async def test_a_stuck_stream_goes_on_where_it_was(start: Start, wireguard: FakeWireGuard) -> None:
    """The record that TLS had begun is finished first; nothing is torn or repeated."""
    running = start(extensions=False)
    number = 0
    while running.relay._sender.is_clean or len(running.relay._sender.queue) < 200:
        wireguard.send(running.port.local_port, *[(number + n).to_bytes(4, "big") + bytes(1400) for n in range(50)])
        number += 50
        await asyncio.sleep(0)
    await running.peer.until(lambda: not running.relay._sender.queue and running.relay._sender.is_clean)
    wireguard.send(running.port.local_port, b"end")
    await running.peer.until(lambda: running.peer.payloads and running.peer.payloads[-1] == b"end")
    numbers = [int.from_bytes(p[:4], "big") for p in running.peer.payloads[:-1]]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == number - sum(count for _, count in running.relay.stats().drops + running.port.stats().drops)


async def test_handshakes_pass_a_closed_window(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    running.peer.acks = False
    for _ in range(100):
        wireguard.send(running.port.local_port, *[bytes(1452)] * 10)
        await asyncio.sleep(0)
    await running.peer.until(lambda: len(running.relay._sender.queue) > 500)
    handshake = b"\x01\0\0\0" + bytes(144)
    wireguard.send(running.port.local_port, handshake)
    await running.peer.until(lambda: handshake in running.peer.payloads)
    assert running.window.on_way <= running.window.size + capsule.RECORD_BYTES


async def test_acks_open_the_window_and_the_queue_drains(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    for _ in range(40):
        wireguard.send(running.port.local_port, *[bytes(1452)] * 10)
        await asyncio.sleep(0)
    await running.peer.until(lambda: not running.relay._sender.queue and not running.window.on_way)
    stats = running.relay.stats()
    assert stats.tx_packets == len(running.peer.payloads)
    assert stats.tx_packets + sum(count for _, count in stats.drops) == 400


@pytest.mark.parametrize("value", [1, 2**63, 2**64 - 1])
async def test_an_ack_that_runs_ahead_is_malformed(start: Start, value: int) -> None:
    running = start()
    await running.peer.send(capsule.encode_ack(value))
    assert await running.end() == "malformed"


async def test_acks_that_go_back_change_nothing(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    running.peer.acks = False
    wireguard.send(running.port.local_port, bytes(1000))
    await running.peer.until(lambda: running.peer.payloads)
    await running.peer.send(b"".join(capsule.encode_ack(n) for n in (1000, 500, 0, 999, 1000)))
    await running.peer.send(datagram(b"x"))
    await wireguard.until(1)
    assert not running.ends and running.window.on_way == 0


async def test_a_flood_of_pings_from_a_peer_that_does_not_read_queues_nothing(start: Start) -> None:
    running = start()
    await running.peer.send(capsule.encode_ping(bytes(8)) * 400_000, timeout_s=30)
    await asyncio.sleep(0.05)
    assert len(running.relay._outbox._bytes) < 64 * 1024
    assert not running.ends


async def test_messages_that_a_peer_does_not_read_end_the_stream(start: Start) -> None:
    running = start()
    for _ in range(1000):
        running.relay.send_control("x" * 60_000)
        if running.ends or running.relay._closed:
            break
    assert await running.end() == "flood"
    assert len(running.relay._outbox._bytes) < outbox.MOST_BYTES + 2 * 65_536


@pytest.mark.parametrize(
    "tiny",
    [b"\x21\x00", b"\x00\x01\x00", datagram(b"x"), capsule.encode_control("")],
    ids=["unknown", "empty", "one byte", "control"],
)
async def test_tiny_capsules_keep_no_other_stream_waiting(
    start: Start, wireguard: FakeWireGuard, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns of the loop are short (CPU time, so that a busy machine does not matter), and turns alternate."""
    turns = []
    original = Relay._on_readable

    def timed(relay: Relay) -> None:
        begin = time.thread_time()
        original(relay)
        turns.append(time.thread_time() - begin)

    monkeypatch.setattr(Relay, "_on_readable", timed)
    hostile, other = start(), start()

    async def send_for_ever() -> None:
        while True:
            await hostile.peer.send(tiny * (16_384 // len(tiny)))
            await asyncio.sleep(0)

    flood = asyncio.ensure_future(send_for_ever())
    for count in range(1, 6):
        wireguard.send(other.port.local_port, b"prompt")
        await other.peer.until_payloads(count)
    flood.cancel()
    without_the_garbage_collector = sorted(turns)[: -len(turns) // 10]
    assert max(without_the_garbage_collector) < 0.05 and len(turns) > 5
    assert hostile.relay._receiver.parser.parsed > 0


async def test_one_turn_is_bounded_and_there_is_one_per_round_of_the_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "CAPSULES_PER_TURN", 10)
    monkeypatch.setattr(receiver_module, "READ_BYTES", 20)
    running = start()
    for _ in range(50):
        await running.peer.send(capsule.encode_control("x") * 15)
    sizes = []
    while len(running.controls) < 750:
        before = len(running.controls)
        await asyncio.sleep(0)
        sizes.append(len(running.controls) - before)
    assert max(sizes) == 10


async def test_a_byte_at_a_time(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    for byte in datagram(b"slow") + capsule.encode_control("slow"):
        await running.peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await wireguard.until(1) == [b"slow"]
    await running.peer.until(lambda: running.controls)
