"""The two halves of a relay over a scripted stream: what TLS may ask for in the middle of a write or a read."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from agent.carrier.capsule import RECORD_BYTES, CapsuleParser, Control, Run, encode_control, head
from agent.carrier.outbox import Outbox
from agent.carrier.receiver import StreamReceiver
from agent.carrier.sender import Blocked, StreamSender
from agent.carrier.window import Window

Pair = tuple[socket.socket, socket.socket]
FULL, WANTS_READ = ssl.SSLWantWriteError(3, "scripted"), ssl.SSLWantReadError(2, "scripted")


class Stream:
    """Takes and gives records as the script says; an exception in the script is raised."""

    def __init__(self, *script: bytes | ssl.SSLError | None) -> None:
        self.script = list(script)
        self.offered: list[bytes] = []
        self.taken: list[bytes] = []

    def send(self, record: bytes | memoryview) -> int:
        self.offered.append(bytes(record))
        if self.script and (step := self.script.pop(0)) is not None:
            assert isinstance(step, ssl.SSLError)
            raise step
        self.taken.append(bytes(record))
        return len(record)

    def recv_into(self, view: memoryview, size: int) -> int:
        assert size <= len(view) and size >= RECORD_BYTES
        if not self.script:
            raise WANTS_READ
        step = self.script.pop(0)
        if isinstance(step, ssl.SSLError):
            raise step
        assert step is not None
        view[: len(step)] = step
        return len(step)

    @property
    def payloads(self) -> list[bytes]:
        data = b"".join(self.taken)
        items = CapsuleParser(extensions=True).parse(bytearray(data), len(data))
        return [bytes(p) for item in items if isinstance(item, Run) for p in item.payloads]


@pytest.fixture
def udp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """WireGuard's end, and the port's."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wireguard,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port,
    ):
        port.bind(("127.0.0.1", 0))
        port.setblocking(False)
        wireguard.connect(port.getsockname())
        yield wireguard, port


def sender(stream: Stream, window: Window | None = None) -> StreamSender:
    return StreamSender(stream, window=window)  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "blocked"), [(FULL, Blocked.ON_WRITE), (WANTS_READ, Blocked.ON_READ)])
def test_a_record_that_was_begun_is_offered_again_before_anything_else(
    udp: Pair, error: ssl.SSLError, blocked: Blocked
) -> None:
    wireguard, port = udp
    stream, box = Stream(error, error, None), Outbox()
    half = sender(stream)
    wireguard.send(b"one")
    half.take(port, box, 0.0)
    assert (half.blocked, half.is_clean) == (blocked, False)
    wireguard.send(b"two")
    box.control("urgent")
    half.take(port, box, 0.1)
    assert half.blocked is blocked and len(half.queue) == 1 and stream.taken == []
    half.flush(box, 0.2)
    assert (half.blocked, half.is_clean) == (Blocked.NO, True)
    assert stream.offered[0] == stream.offered[1] == stream.offered[2] == head(3) + b"one"
    assert stream.taken[1:] == [encode_control("urgent") + head(3) + b"two"]
    assert half.packets == 2 and half.payload_bytes == 6


def test_one_turn_moves_a_few_full_records(udp: Pair) -> None:
    wireguard, port = udp
    stream = Stream()
    half = sender(stream)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for n in range(60):
        wireguard.send(bytes([n]) * 1452)
    half.take(port, Outbox(), 0.0)
    assert [len(record) for record in stream.taken] == [11 * 1456] * 4
    half.take(port, Outbox(), 0.0)
    assert stream.payloads == [bytes([n]) * 1452 for n in range(60)]


def test_sizes_that_do_not_divide_a_record(udp: Pair) -> None:
    wireguard, port = udp
    stream = Stream()
    half = sender(stream)
    sizes = [5000, 16000, 1, 16000, 16000, 15000, 0, 7000]
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for size in sizes:
        wireguard.send(bytes(size))
    for _ in sizes:
        half.take(port, Outbox(), 0.0)
    assert [len(p) for p in stream.payloads] == sizes
    assert all(len(record) <= 2 * RECORD_BYTES for record in stream.taken)


def test_an_acknowledgement_rides_along(udp: Pair) -> None:
    wireguard, port = udp
    stream, box = Stream(), Outbox()
    half = sender(stream, Window())
    box.received_bytes = 77
    wireguard.send(b"x")
    half.take(port, box, 0.0)
    assert len(stream.taken) == 1 and len(stream.taken[0]) == 13 + 5
    assert box.unacked_bytes == 0


def test_a_long_control_message_is_not_interrupted_by_packets(udp: Pair) -> None:
    wireguard, port = udp
    stream, box = Stream(None, FULL), Outbox()
    half = sender(stream)
    box.control("x" * 60_000)
    wireguard.send(b"packet")
    half.take(port, box, 0.0)
    half.flush(box, 0.0)
    data = b"".join(stream.taken)
    items = CapsuleParser(extensions=True).parse(bytearray(data), len(data))
    assert items[0] == Control("x" * 60_000) and stream.payloads == [b"packet"]


def test_a_closed_window_lets_control_pass_and_keeps_data(udp: Pair) -> None:
    wireguard, port = udp
    window = Window()
    stream, box = Stream(), Outbox()
    half = sender(stream, window)
    window.on_sent(window.room, 0.0)
    wireguard.send(bytes(100))
    half.take(port, box, 0.0)
    assert stream.taken == [] and len(half.queue) == 1
    box.control("c")
    half.flush(box, 0.0)
    assert stream.taken == [encode_control("c")]
    window.on_ack(window.sent, 0.1)
    half.flush(box, 0.1)
    assert stream.payloads == [bytes(100)]


def receiver(stream: Stream) -> StreamReceiver:
    return StreamReceiver(stream, extensions=True, early=b"")  # type: ignore[arg-type]


def test_a_read_that_has_to_write_first() -> None:
    data = head(3) + b"abc"
    half = receiver(Stream(data[:5], FULL, data[5:]))
    assert (half.read(100), half.wants_write, half.more) == ([], True, False)
    (run,) = half.read(100)
    assert isinstance(run, Run) and bytes(run.payloads[0]) == b"abc"
    assert (half.wants_write, half.more, half.ended) == (False, False, False)


def test_the_end_of_the_stream() -> None:
    half = receiver(Stream(head(3) + b"abc", b""))
    assert len(half.read(100)) == 1
    assert half.ended and not half.more


def test_a_read_is_bounded_and_says_that_there_is_more() -> None:
    record = (head(1400) + bytes(1400)) * 11
    half = receiver(Stream(*[record] * 30))
    moved = 0
    while True:
        moved += sum(len(item.payloads) for item in half.read(1000) if isinstance(item, Run))
        if not half.more:
            break
        assert moved <= 330
    assert moved == 330
