"""TCP inside the stream, in simulated time: the real queue and window in front of a proxy that queues without end.

50 Mbit/s, 40 ms. The flows inside are as greedy as cubic (RFC 9438) is; a small probe, 50 times a second, shares the tunnel
with them. Nothing here depends on how busy the machine is that runs the test.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

from agent.carrier.capsule import RECORD_BYTES
from agent.carrier.outbox import ACK_DELAY_S, ACK_EVERY_BYTES
from agent.carrier.queue import SendQueue
from agent.carrier.window import Window

TICK_S = 0.001
RATE_BYTES_S = 50e6 / 8
ONE_WAY_S = 0.020
PACKET_BYTES, PROBE_BYTES = 1452, 128
PROBE_EVERY_S = 0.02
RETRANSMISSION_TIMEOUT_S = 1.0


@dataclass
class Flow:
    """A greedy TCP sender in packets: slow start, one decrease per round trip with losses, cubic growth."""

    window: float = 10.0
    slow_start: bool = True
    next: int = 0
    out: dict[int, float] = field(default_factory=dict)
    most: float = 0.0
    decreased_at: float = 0.0
    recovered: int = 0
    delivered: int = 0

    def acknowledge(self, number: int, now: float) -> None:
        self.delivered += self.out.pop(number, None) is not None
        lost = []
        for other in self.out:  # in the order of sending
            if other >= number - 3:
                break
            lost.append(other)
        for other in lost:
            del self.out[other]
        if lost and lost[-1] >= self.recovered:
            self.most, self.window = self.window, max(2.0, 0.7 * self.window)
            self.slow_start, self.decreased_at, self.recovered = False, now, self.next
        elif self.slow_start:
            self.window += 1
        else:
            plateau_s = (self.most * 0.3 / 0.4) ** (1 / 3)
            target = 0.4 * (now - self.decreased_at - plateau_s) ** 3 + self.most
            self.window += max(0.01, target - self.window) / self.window

    def give_up_waiting(self, now: float) -> None:
        if self.out and now - next(iter(self.out.values())) > RETRANSMISSION_TIMEOUT_S:
            self.out.clear()
            self.window, self.recovered = 2.0, self.next


def packet(owner: int, number: int, size: int) -> bytes:
    return b"\x04\0\0\0" + owner.to_bytes(4, "big") + number.to_bytes(4, "big") + bytes(size - 12)


@dataclass
class Tunnel:
    """The sending half of a relay, a proxy's endless buffer in front of the wire, and the relay at the other end."""

    flows: list[Flow]
    window: Window | None = field(default_factory=Window)
    queue: SendQueue = field(default_factory=SendQueue)
    now: float = 0.0
    proxy: deque[bytes] = field(default_factory=deque)
    wire: deque[tuple[float, bytes]] = field(default_factory=deque)
    acks: deque[tuple[float, int]] = field(default_factory=deque)
    answers: deque[tuple[float, int, int]] = field(default_factory=deque)
    received: int = 0
    acked: int = 0
    credit: float = 0.0
    probed: list[float] = field(default_factory=list)
    round_trips_s: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> tuple[float, float]:
        """Mbit/s of the flows and the probe's median round trip in s, both over what comes now."""
        until, before = self.now + seconds, sum(flow.delivered for flow in self.flows)
        self.round_trips_s.clear()
        while self.now < until:
            self.now += TICK_S
            self._offer()
            self._send()
            self._move()
            self._answer()
        delivered = sum(flow.delivered for flow in self.flows) - before
        return delivered * PACKET_BYTES * 8 / seconds / 1e6, sorted(self.round_trips_s)[len(self.round_trips_s) // 2]

    def _offer(self) -> None:
        for owner, flow in enumerate(self.flows, start=1):
            flow.give_up_waiting(self.now)
            while len(flow.out) < flow.window:
                flow.out[flow.next] = self.now
                self.queue.push(packet(owner, flow.next, PACKET_BYTES), self.now)
                flow.next += 1
        if self.now >= len(self.probed) * PROBE_EVERY_S:
            self.queue.push(packet(0, len(self.probed), PROBE_BYTES), self.now)
            self.probed.append(self.now)

    def _send(self) -> None:
        while self.queue and (self.window is None or self.window.room > 0):
            room = self.window.room if self.window else RECORD_BYTES
            taken = self.queue.take(RECORD_BYTES, room, self.now)
            self.proxy.extend(taken)
            if self.window is not None and taken:
                self.window.on_sent(sum(map(len, taken)), self.now)

    def _move(self) -> None:
        self.credit = min(self.credit, PACKET_BYTES) + RATE_BYTES_S * TICK_S
        while self.proxy and self.credit >= len(self.proxy[0]):
            self.credit -= len(self.proxy[0])
            self.wire.append((self.now + ONE_WAY_S, self.proxy.popleft()))

    def _answer(self) -> None:
        while self.wire and self.wire[0][0] <= self.now:
            arrived = self.wire.popleft()[1]
            self.received += len(arrived)
            owner, number = int.from_bytes(arrived[4:8], "big"), int.from_bytes(arrived[8:12], "big")
            self.answers.append((self.now + ONE_WAY_S, owner, number))
        due = round(self.now / TICK_S) % round(ACK_DELAY_S / TICK_S) == 0 and self.received > self.acked
        if due or self.received - self.acked >= ACK_EVERY_BYTES:
            self.acked = self.received
            self.acks.append((self.now + ONE_WAY_S, self.received))
        while self.acks and self.acks[0][0] <= self.now:
            received = self.acks.popleft()[1]
            if self.window is not None:
                self.window.on_ack(received, self.now)
        while self.answers and self.answers[0][0] <= self.now:
            _, owner, number = self.answers.popleft()
            if owner:
                self.flows[owner - 1].acknowledge(number, self.now)
            else:
                self.round_trips_s.append(self.now - self.probed[number])


@pytest.mark.parametrize("flows", [1, 4])
def test_a_bulk_transfer_leaves_room_for_others(flows: int) -> None:
    tunnel = Tunnel([Flow() for _ in range(flows)])
    tunnel.run(3)
    mbit_s, median_s = tunnel.run(5)
    assert mbit_s > 45
    assert median_s < 0.080


def test_without_acknowledgements_the_queue_stands_in_the_proxy() -> None:
    """What the window is for: TCP inside only stops growing when nothing else does."""
    tunnel = Tunnel([Flow()], window=None)
    tunnel.run(3)
    assert tunnel.run(5)[1] > 0.2
