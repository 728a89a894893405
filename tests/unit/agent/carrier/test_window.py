"""The delay-based window on a simulated path: throughput, the queue it leaves, and what it takes for an empty path."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

from agent.carrier.outbox import ACK_DELAY_S, ACK_EVERY_BYTES
from agent.carrier.window import (
    BASE_LIFETIME_S,
    FIRST_BYTES,
    LEAST_BYTES,
    MOST_BYTES,
    QUEUE_TARGET_S,
    STARVED_LIFETIME_S,
    Window,
)
from agent.errors import BadMessage

TICK_S = 0.001
CHUNK = 2800


@dataclass
class Path:
    """A sender that always has data, a link with an endless queue, and a receiver that acknowledges as ours does."""

    mbit_s: float
    rtt_s: float
    window: Window = field(default_factory=Window)
    now: float = 1000.0
    queue: deque[tuple[float, int]] = field(default_factory=deque)
    wire: deque[tuple[float, int]] = field(default_factory=deque)
    acks: deque[tuple[float, int]] = field(default_factory=deque)
    received: int = 0
    acked: int = 0
    credit: float = 0.0
    stall_s: float = 0.0
    stall_every_s: float = 1.0
    queued_s: list[float] = field(default_factory=list)

    def run(self, seconds: float, offered_mbit_s: float | None = None) -> float:
        """Returns the throughput in Mbit/s over the last half; `queued_s` gets the waiting times of that half."""
        self.queued_s.clear()
        begin, counted, budget = self.now, 0, 0.0
        while self.now < begin + seconds:
            self.now += TICK_S
            budget += (offered_mbit_s or 1e9) * 1e6 / 8 * TICK_S
            while self.window.room > 0 and budget >= CHUNK:
                self.window.on_sent(CHUNK, self.now)
                budget -= CHUNK
                self.queue.append((self.now, CHUNK))
            budget = min(budget, 10 * CHUNK)
            self.credit = min(self.credit + self.mbit_s * 1e6 / 8 * TICK_S, self.mbit_s * 1e6 / 8 * 2 * TICK_S + CHUNK)
            while self.queue and self.credit >= CHUNK:
                since, size = self.queue.popleft()
                self.credit -= size
                self.wire.append((self.now + self.rtt_s / 2, size))
                if self.now > begin + seconds / 2:
                    self.queued_s.append(self.now - since)
            stalled = self.now % self.stall_every_s < self.stall_s
            while self.wire and self.wire[0][0] <= self.now and not stalled:
                at, size = self.wire.popleft()
                self.received += size
                counted += size if self.now > begin + seconds / 2 else 0
                if self.received - self.acked >= ACK_EVERY_BYTES:
                    self._ack(max(at, self.now))
            if self.received > self.acked and int(self.now / TICK_S) % int(ACK_DELAY_S / TICK_S) == 0:
                self._ack(self.now)
            while self.acks and self.acks[0][0] <= self.now:
                self.window.on_ack(self.acks.popleft()[1], self.now)
        return counted * 8 / (seconds / 2) / 1e6

    def _ack(self, at: float) -> None:
        self.acked = self.received
        self.acks.append((at + self.rtt_s / 2, self.received))

    @property
    def queue_s(self) -> float:
        ordered = sorted(self.queued_s)
        return ordered[len(ordered) // 2]


@pytest.mark.parametrize(("mbit_s", "rtt_s"), [(50, 0.04), (20, 0.1), (200, 0.02), (100, 0.001)])
def test_full_throughput_with_a_short_queue(mbit_s: float, rtt_s: float) -> None:
    path = Path(mbit_s, rtt_s)
    assert path.run(20) > 0.93 * mbit_s
    assert path.queue_s < QUEUE_TARGET_S + 0.01


@pytest.mark.parametrize(
    ("stall_s", "every_s", "share"), [(0.02, 0.06, 0.97), (0.05, 0.2, 0.8), (0.045, 0.1, 0.7), (0.1, 0.5, 0.8)]
)
def test_a_receiver_that_is_often_not_scheduled_does_not_look_like_a_queue(
    stall_s: float, every_s: float, share: float
) -> None:
    assert Path(50, 0.04, stall_s=stall_s, stall_every_s=every_s).run(20) > share * 50


def test_a_standing_queue_never_becomes_part_of_the_path() -> None:
    path = Path(50, 0.04)
    path.run(10)
    early = path.queue_s
    for _ in range(6):
        path.run(2 * BASE_LIFETIME_S)
    throughput = path.run(2 * BASE_LIFETIME_S)
    assert path.queue_s < early + 0.005
    assert throughput > 0.93 * 50


def test_a_path_that_becomes_longer_is_measured_again() -> None:
    path = Path(50, 0.02)
    path.run(10)
    path.rtt_s = 0.15
    path.run(STARVED_LIFETIME_S + 6)
    assert path.run(10) > 0.9 * 50
    assert path.queue_s < QUEUE_TARGET_S + 0.015


def test_a_path_that_becomes_shorter_is_measured_again() -> None:
    path = Path(50, 0.15)
    path.run(20)
    path.rtt_s = 0.02
    path.run(BASE_LIFETIME_S + 2)
    assert path.run(8) > 0.93 * 50
    assert path.queue_s < QUEUE_TARGET_S + 0.01


def test_a_slow_link_has_no_more_than_the_least_window_in_it() -> None:
    path = Path(2, 0.04)
    path.window.on_rtt(0.04, path.now)
    path.run(5)
    assert path.run(10) > 0.9 * 2
    assert path.window.size < 1.1 * LEAST_BYTES
    assert path.window.on_way <= 1.1 * LEAST_BYTES + CHUNK


def test_a_base_measured_behind_a_burst_is_soon_corrected() -> None:
    """The first thing on a slow link is a full window: its round trip is half a second longer than the path."""
    path = Path(2, 0.04)
    path.run(BASE_LIFETIME_S + 10)
    assert path.run(4) > 0.9 * 2
    assert path.window.size < 1.1 * LEAST_BYTES


def test_an_idle_sender_does_not_grow_its_window() -> None:
    path = Path(100, 0.04)
    path.run(30, offered_mbit_s=5)
    assert path.window.size == FIRST_BYTES


def test_the_window_has_an_end() -> None:
    window, now = Window(), 0.0
    for _ in range(3000):
        window.on_sent(window.room, now)
        now += 0.01
        window.on_ack(window.sent, now)
        assert window.size <= MOST_BYTES
    assert window.size == MOST_BYTES


def test_what_a_hop_throws_away_does_not_close_the_window_for_good() -> None:
    window = Window()
    window.on_sent(100_000, 0.0)
    window.mark()
    window.on_sent(500, 0.1)
    window.on_ack(60_000, 0.2)
    assert (window.on_way, window.unanswered_since) == (40_500, 0.0)
    window.resync()
    assert (window.on_way, window.unanswered_since) == (500, 0.1)
    assert window.on_ack(60_500, 0.3) == pytest.approx(0.2)
    assert (window.on_way, window.unanswered_since) == (0, None)
    with pytest.raises(BadMessage):
        window.on_ack(60_501, 0.3)
    window.resync()
    assert window.on_way == 0


def test_an_ack_that_goes_back_changes_nothing() -> None:
    window = Window()
    window.on_sent(1000, 0.0)
    window.on_sent(1000, 0.5)
    assert window.on_ack(2000, 1.0) == pytest.approx(0.5)
    assert window.on_ack(1000, 1.0) is None and window.on_ack(2000, 1.0) is None
    assert window.on_way == 0


def test_an_ack_of_what_was_never_sent_is_malformed() -> None:
    window = Window()
    window.on_sent(1000, 0.0)
    with pytest.raises(BadMessage, match="1001 bytes acknowledged, 1000 were sent"):
        window.on_ack(1001, 1.0)


def test_small_packets_share_samples() -> None:
    window = Window()
    for n in range(10_000):
        window.on_sent(1, n * 1e-7)
    assert len(window._flights) == 1
    assert window.on_ack(10_000, 0.5) == pytest.approx(0.5)
