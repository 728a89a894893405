"""The send queue: order, CoDel against RFC 8289, caps, and what is kept while no stream is up."""

from __future__ import annotations

import itertools

import pytest

from agent.carrier.capsule import HEAD_BYTES, MAX_DATAGRAM_BYTES, RECORD_BYTES
from agent.carrier.queue import (
    CAP_PACKETS,
    CAP_S,
    CODEL_INTERVAL_S,
    CODEL_TARGET_S,
    INITIATION_LIFETIME_S,
    PRIORITY_PACKETS,
    CoDel,
    Drop,
    LastInitiation,
    SendQueue,
    is_initiation,
    is_priority,
)

PLENTY = 1 << 30


def message(kind: int, size: int, fill: int = 0) -> bytes:
    return bytes([kind, 0, 0, 0]) + bytes([fill]) * (size - 4)


def data(number: int, size: int = 1452) -> bytes:
    return message(4, size - 4) + number.to_bytes(4, "big")


def number(packet: bytes) -> int:
    return int.from_bytes(packet[-4:], "big")


INITIATION, RESPONSE, COOKIE, KEEPALIVE = message(1, 148), message(2, 92), message(3, 64), message(4, 32)


def test_what_has_priority() -> None:
    assert all(map(is_priority, (INITIATION, RESPONSE, COOKIE, KEEPALIVE)))
    others = (b"", b"\x01", message(4, 148), message(1, 149), message(4, 96), b"\x01\x00\x00\x01" + bytes(144))
    assert not any(map(is_priority, others))
    assert is_initiation(INITIATION) and not is_initiation(RESPONSE) and not is_initiation(message(4, 148))


def test_priority_goes_first_and_order_is_kept() -> None:
    queue = SendQueue()
    for packet in (data(1), RESPONSE, data(2), KEEPALIVE, data(3)):
        queue.push(packet, 0.0)
    assert len(queue) == 5
    assert queue.take(RECORD_BYTES, PLENTY, 0.0) == [RESPONSE, KEEPALIVE, data(1), data(2), data(3)]
    assert not queue and not queue.drops


def test_priority_passes_a_closed_window() -> None:
    queue = SendQueue()
    queue.push(data(1), 0.0)
    queue.push(INITIATION, 0.0)
    assert queue.take(RECORD_BYTES, 0, 0.0) == [INITIATION]
    assert queue.take(RECORD_BYTES, -5, 0.0) == []
    assert queue.take(RECORD_BYTES, 1, 0.0) == [data(1)], "the last packet may exceed the window"


def test_priority_is_bounded_and_the_newest_stay() -> None:
    queue = SendQueue()
    for n in range(PRIORITY_PACKETS + 10):
        queue.push(message(1, 148, n), 0.0)
    taken = queue.take(PLENTY, PLENTY, 0.0)
    assert [p[-1] for p in taken] == list(range(10, PRIORITY_PACKETS + 10))
    assert queue.drops == {Drop.PRIORITY: 10}


def test_a_record_holds_whole_packets_with_their_heads() -> None:
    queue = SendQueue()
    for n in range(30):
        queue.push(data(n), 0.0)
    assert [number(p) for p in queue.take(RECORD_BYTES, PLENTY, 0.0)] == list(range(11))
    assert 11 * (HEAD_BYTES + 1452) <= RECORD_BYTES < 12 * (HEAD_BYTES + 1452)
    assert queue.take(1455, PLENTY, 0.0) == []
    assert queue.take(1456, PLENTY, 0.0) == [data(11)]
    queue.push(RESPONSE, 0.0)
    assert queue.take(90, PLENTY, 0.0) == [], "nothing overtakes a priority packet that does not fit"
    assert queue.take(RECORD_BYTES, PLENTY, 0.0)[0] == RESPONSE


def test_the_largest_packet_fits_an_empty_record() -> None:
    queue = SendQueue()
    queue.push(bytes(MAX_DATAGRAM_BYTES), 0.0)
    assert len(queue.take(RECORD_BYTES, PLENTY, 0.0)) == 1


def test_a_full_queue_drops_the_oldest() -> None:
    queue = SendQueue()
    for n in range(CAP_PACKETS + 5):
        queue.push(data(n, 200), 0.0)
    assert len(queue) == CAP_PACKETS and queue.drops == {Drop.CAP: 5}
    assert number(queue.take(1000, 1, 0.0)[0]) == 5
    assert queue.waiting_bytes == 200 * (CAP_PACKETS - 1)


def test_the_queue_of_a_stuck_stream_is_bounded_in_bytes() -> None:
    queue = SendQueue()
    for n in range(10_000):
        queue.push(data(n, 9000), n * 0.001)
    assert queue.waiting_bytes <= CAP_PACKETS * 1500
    assert number(queue.take(RECORD_BYTES, 1, 10.0)[0]) == 10_000 - 166


def test_nothing_waits_longer_than_half_a_second() -> None:
    """A link of 2 Mbit/s, flooded: 2.9 kB leave every 12 ms, 7 kB come."""
    queue, waits, now = SendQueue(), [], 0.0
    for _ in range(400):
        for _ in range(5):
            queue.push(data(int(now * 1000)), now)
        waits += [now - number(packet) / 1000 for packet in queue.take(RECORD_BYTES, 1453, now)]
        now += 0.012
    assert 0.4 < max(waits) <= CAP_S + 0.001
    assert queue.drops[Drop.CAP] > 0


def test_a_stall_is_no_reason_to_drop_what_waited() -> None:
    queue = SendQueue()
    for n in range(400):
        queue.push(data(n), 0.0)
    assert len(queue.take(PLENTY, PLENTY, 0.4)) == 400


def run_codel(arrivals_per_ms: float, departures_per_ms: float, seconds: float) -> tuple[SendQueue, list[float]]:
    """A flood through a queue; returns the times of CoDel's drops."""
    queue, drops, credit_in, credit_out = SendQueue(), [], 0.0, 0.0
    for ms in range(int(seconds * 1000)):
        now = ms / 1000
        credit_in += arrivals_per_ms
        credit_out += departures_per_ms
        while credit_in >= 1:
            queue.push(data(ms), now)
            credit_in -= 1
        while credit_out >= 1 and queue:
            before = queue.drops[Drop.CODEL]
            queue.take(1456, 1, now)
            drops += [now] * (queue.drops[Drop.CODEL] - before)
            credit_out -= 1
    return queue, drops


def test_codel_leaves_a_short_queue_alone() -> None:
    queue, drops = run_codel(0.9, 1.0, 2.0)
    assert drops == [] and not queue.drops


def test_codel_drops_ever_faster_while_the_queue_stays() -> None:
    _, drops = run_codel(1.1, 1.0, 2.0)
    assert drops[0] >= CODEL_INTERVAL_S
    gaps = [b - a for a, b in itertools.pairwise(drops)]
    assert gaps[0] == pytest.approx(CODEL_INTERVAL_S, abs=0.003)
    assert gaps[1] == pytest.approx(CODEL_INTERVAL_S / 2**0.5, abs=0.003)
    assert gaps[2] == pytest.approx(CODEL_INTERVAL_S / 3**0.5, abs=0.003)


def test_codel_stops_when_the_queue_is_short_again_and_remembers_the_load() -> None:
    codel, now = CoDel(), 10.0
    while not codel.drops(0.05, 10_000, now):
        now += 0.01
    assert now == pytest.approx(10.0 + CODEL_INTERVAL_S, abs=0.011)
    for _ in range(100):
        now += 0.01
        codel.drops(0.05, 10_000, now)
    assert not codel.drops(CODEL_TARGET_S / 2, 10_000, now)
    first_again = now + CODEL_INTERVAL_S
    drops = 0
    while now < first_again + 0.1:
        now += 0.005
        drops += codel.drops(0.05, 10_000, now)
    assert drops >= 3, "the rate of drops goes on where it was, it does not start at one per 100 ms"


def test_codel_spares_the_last_packet() -> None:
    codel = CoDel()
    assert not any(codel.drops(10.0, 0, now / 100) for now in range(100))


def test_while_no_stream_is_up_only_the_newest_initiation_is_kept() -> None:
    kept = LastInitiation()
    for packet in (data(1), message(1, 148, 1), KEEPALIVE, RESPONSE, message(1, 148, 2), data(2)):
        kept.push(packet, 100.0)
    assert kept.take(100.0 + INITIATION_LIFETIME_S) == message(1, 148, 2)
    assert kept.take(100.0) is None
    assert kept.drops == 5


def test_a_stale_initiation_is_of_no_use() -> None:
    kept = LastInitiation()
    kept.push(INITIATION, 100.0)
    assert kept.take(100.1 + INITIATION_LIFETIME_S) is None
    assert kept.drops == 1
