"""What a relay has moved and dropped: values that can be added."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RelayStats:
    """`tx` is from WireGuard to the stream, `rx` from the stream to WireGuard; bytes are UDP payload.

    `drops`: packets dropped by reason, sorted. `rtt_s`: smoothed round trip over the stream, end to end; `queue_delay_s`: what
    of it is waiting on the way. None: not measured (no traffic yet, or a peer without acks). A sum keeps the larger one.
    """

    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    drops: tuple[tuple[str, int], ...] = ()
    rtt_s: float | None = None
    queue_delay_s: float | None = None

    def __add__(self, other: RelayStats) -> RelayStats:
        return RelayStats(
            self.tx_packets + other.tx_packets,
            self.tx_bytes + other.tx_bytes,
            self.rx_packets + other.rx_packets,
            self.rx_bytes + other.rx_bytes,
            tuple(sorted((Counter(dict(self.drops)) + Counter(dict(other.drops))).items())),
            _larger(self.rtt_s, other.rtt_s),
            _larger(self.queue_delay_s, other.queue_delay_s),
        )


def _larger(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)
