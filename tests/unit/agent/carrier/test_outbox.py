"""What goes out before packets, and that it is bounded."""

from __future__ import annotations

from agent.carrier import capsule
from agent.carrier.capsule import RECORD_BYTES, Ack, CapsuleParser, Control, Item, Ping, Pong
from agent.carrier.outbox import ACK_EVERY_BYTES, MOST_BYTES, Outbox


def parsed(data: bytes) -> list[Item]:
    parser = CapsuleParser(extensions=True)
    items = parser.parse(bytearray(data), len(data))
    assert not parser.inside_capsule
    return items


def test_nothing_to_say() -> None:
    outbox = Outbox()
    assert not outbox and outbox.take(RECORD_BYTES) == b""


def test_an_ack_goes_before_a_pong_and_behind_what_waits() -> None:
    outbox = Outbox()
    outbox.control("one")
    outbox.ping(b"12345678")
    outbox.received_bytes = 1000
    outbox.pong(b"abcdefgh")
    assert outbox
    assert parsed(outbox.take(RECORD_BYTES)) == [Control("one"), Ping(b"12345678"), Ack(1000), Pong(b"abcdefgh")]
    assert not outbox and outbox.unacked_bytes == 0


def test_an_ack_is_due_after_32_kib_or_when_told() -> None:
    outbox = Outbox()
    outbox.ack()
    assert not outbox, "there is nothing to acknowledge"
    outbox.received_bytes = ACK_EVERY_BYTES - 1
    assert not outbox
    outbox.ack()
    assert outbox and parsed(outbox.take(RECORD_BYTES)) == [Ack(ACK_EVERY_BYTES - 1)] and not outbox
    outbox.received_bytes += ACK_EVERY_BYTES
    assert outbox and parsed(outbox.take(RECORD_BYTES)) == [Ack(2 * ACK_EVERY_BYTES - 1)] and not outbox


def test_an_ack_rides_along_with_anything() -> None:
    outbox = Outbox()
    outbox.received_bytes = 5
    assert parsed(outbox.take(RECORD_BYTES)) == [Ack(5)]


def test_a_flood_of_pings_is_answered_once() -> None:
    outbox = Outbox()
    for n in range(100_000):
        outbox.pong(n.to_bytes(8, "big"))
    assert parsed(outbox.take(RECORD_BYTES)) == [Pong((99_999).to_bytes(8, "big"))]


def test_a_long_message_is_not_interrupted() -> None:
    outbox = Outbox()
    outbox.control("x" * capsule.MAX_CONTROL_BYTES)
    outbox.received_bytes = 7
    outbox.pong(bytes(8))
    pieces = []
    while outbox:
        pieces.append(outbox.take(RECORD_BYTES))
    assert [len(p) for p in pieces[:-1]] == [RECORD_BYTES] * (len(pieces) - 1)
    assert parsed(b"".join(pieces)) == [Control("x" * capsule.MAX_CONTROL_BYTES), Ack(7), Pong(bytes(8))]


def test_messages_nobody_takes_overflow() -> None:
    outbox = Outbox()
    count = 0
    while not outbox.overflows:
        outbox.control("x" * 60_000)
        count += 1
    assert count == MOST_BYTES // 60_000 + 1
