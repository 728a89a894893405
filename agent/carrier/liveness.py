"""Whether a stream is alive, and whether it has grown too old.

Every received byte is a sign of life. Without one for 5 s we ask (a ping capsule); while an answer is due anyway, because
data is unacknowledged or a ping unanswered, we ask again every 0.7 s. The third question without any sign of life ends the
stream: a path that silently drops packets is noticed within 3 s under traffic. But a path that has lately been silent for
longer and came back (retransmissions, doubling) is given three times as long. `now` is in seconds, monotonic.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

QUIET_S = 5.0
#: The end that waits longer is asked first and need not ask itself: half of an idle server's work.
PASSIVE_QUIET_S = 6.0
IMPATIENT_S = 0.7
QUESTIONS = 3
#: Share of the longest silence that ended well by which a question is spaced, and how long that silence counts.
SILENCE_SHARE = 0.75
SILENCE_REMEMBERED_S = 300.0
_SRTT_SHARE = 1 / 8  # RFC 6298 section 2

LIFETIME_S = 3600.0
#: AES-GCM under one key should protect at most 2**24.5 records (RFC 8446 section 5.5), 388 GB in full ones.
LIFETIME_BYTES = 100 * 10**9
JITTER = 0.2


class Verdict(Enum):
    WAIT = "wait"
    ASK = "ask"
    DEAD = "dead"


class Liveness:
    """Asks, and gives up. `unanswered_since`: when the oldest data without an acknowledgement was sent, None without such."""

    __slots__ = ("_asked", "_asked_at", "_quiet_s", "_received_at", "_serial", "_silence_at", "patience_s", "srtt_s")

    def __init__(self, now: float, *, quiet_s: float = QUIET_S) -> None:
        self._received_at = now
        self._quiet_s = quiet_s
        self._asked = 0
        self._asked_at = now
        self._serial = 0
        self._silence_at = now
        #: How long an answer that is due may take before we ask (again).
        self.patience_s = IMPATIENT_S
        #: Smoothed round trip, None before the first sample.
        self.srtt_s: float | None = None

    @property
    def question(self) -> bytes:
        """What the latest ping carries; a pong with anything else does not count."""
        return self._serial.to_bytes(8, "big")

    def on_received(self, now: float) -> None:
        if self._asked:
            silence_s = self._asked * self.patience_s + now - self._asked_at
            if silence_s * SILENCE_SHARE >= self.patience_s:
                self.patience_s = min(QUIET_S, silence_s * SILENCE_SHARE)
                self._silence_at = now
            self._asked = 0
        if now - self._silence_at > SILENCE_REMEMBERED_S:
            self.patience_s, self._silence_at = IMPATIENT_S, now
        self._received_at = now

    def on_rtt(self, rtt_s: float) -> None:
        self.srtt_s = rtt_s if self.srtt_s is None else self.srtt_s + _SRTT_SHARE * (rtt_s - self.srtt_s)

    def on_answer(self, opaque: bytes, now: float) -> float | None:
        """The round trip when this pong answers the latest ping, else None."""
        if opaque != self.question or not self._serial:
            return None
        rtt_s = now - self._asked_at
        self.on_rtt(rtt_s)
        return rtt_s

    def ask(self, now: float) -> None:
        """A ping with a new `question` is sent now."""
        self._asked += 1
        self._asked_at = now
        self._serial += 1

    def next_wakeup(self, unanswered_since: float | None) -> float:
        """When to call `poll` if nothing happens before."""
        if self._asked:
            return self._asked_at + self.patience_s
        if unanswered_since is not None:
            return max(self._received_at, unanswered_since) + self.patience_s
        return self._received_at + self._quiet_s

    def poll(self, unanswered_since: float | None, now: float) -> Verdict:
        """ASK: send a ping with `question` now. A suspended process wakes up to one question, not to a verdict."""
        if now < self.next_wakeup(unanswered_since):
            return Verdict.WAIT
        if self._asked == QUESTIONS:
            return Verdict.DEAD
        self.ask(now)
        return Verdict.ASK


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a stream should be replaced: about every hour or 100 GB, spread by `spread` (0 to 1) so that not all do at once."""

    since: float
    spread: float

    @property
    def ends_at(self) -> float:
        return self.since + LIFETIME_S * (1 - JITTER * self.spread)

    def is_over(self, now: float, moved_bytes: int) -> bool:
        """`moved_bytes`: UDP payload in the direction that carried more."""
        return now >= self.ends_at or moved_bytes >= LIFETIME_BYTES * (1 - JITTER * self.spread)
