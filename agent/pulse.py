"""Whether one client can be relied on: from questions asked, answers heard and streams lost. Pure; times are monotonic seconds.

    UNPROVEN --first answer--> WELL --silence, or no stream--> LOST --answer--> UNPROVEN --holds for `hold_s`--> WELL

A client is asked once or twice a second. One question that stays unanswered makes it a suspect, who is asked ten times a
second, and only many silent questions over `patience_s` make it lost: on a path that loses every fifth packet each way a
third of the questions stay unanswered, but fifteen in a row never. Two more rules keep a bad path from flapping: a long silence that
ended well lengthens the patience, and a client that comes back has to hold, twice as long each time.

What counts is the number of unanswered questions, not time alone: a server that was itself suspended wakes up to one
unanswered question, and not to a verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, IntEnum

INTERVAL_S = 1.0
#: How often one is asked for whom others stand by, so that they take over soon.
RELIED_ON_INTERVAL_S = 0.5
#: All others together are asked about so often per second, each no more often than INTERVAL_S and no more seldom than the
#: last: "a canary crossed a moment ago" means four seconds (agent.health.CANARY_FRESH_S).
QUESTIONS_PER_S, STANDBY_INTERVAL_MAX_S = 1000, 3.0
#: How often a suspect is asked.
SUSPECT_INTERVAL_S = 0.1
#: A question is overdue after so long, or after twice the usual round trip, at most OVERDUE_MAX_S.
OVERDUE_S, OVERDUE_MAX_S = 0.25, 0.6

#: Lost after so many unanswered questions over so many seconds. With RELIED_ON_INTERVAL_S before the first of them, a
#: client that dies in the worst moment is lost after 2.4 s. TCP's first three retransmissions take 1.4 s together, and the
#: two that may follow 3.0 and 6.2 s (RFC 6298 from 200 ms on): whoever has seen three expects five.
MISSING_MIN = 8
PATIENCE_S, PATIENCE_MAX_S = 1.7, 7.0
#: A client that is asked nothing says by itself that it lives (agent.canary). Heard so lately, it is not dead: what is silent
#: is the way to it, on which a proxy's TCP doubles its timeouts: 200 ms seven times over are 25 s. Were no packet at all on that
#: way, TCP's acknowledgements would be missing too, and what we hear would end within seconds.
HEARD_S, HEARD_PATIENCE_S = 2.0, 30.0
#: A new client has to shake hands first.
NEW_PATIENCE_S = 5.0
#: A silence of at least NEAR_S and NEAR_MISSING questions that ended well adds its length, STRETCH times, to the patience.
NEAR_S, NEAR_MISSING, STRETCH, REMEMBERED_S = 0.3, 2, 1.5, 300.0
#: A stream that broke is made again within a second.
STREAM_PATIENCE_S = 1.0
#: How long a client that was lost has to answer before it is relied on again; doubled by each loss within FORGIVEN_S.
HOLD_S, HOLD_MAX_S, FORGIVEN_S = 15.0, 240.0, 600.0


def standby_interval_s(clients: int) -> float:
    """How often one of so many clients is asked on whom nobody relies for more than its own prefixes; whole seconds."""
    return min(STANDBY_INTERVAL_MAX_S, max(INTERVAL_S, float(-(-clients // QUESTIONS_PER_S))))


def overdue_s(rtt_s: float | None) -> float:
    """After so long an answer is late, where the last one took `rtt_s`."""
    return min(OVERDUE_MAX_S, max(OVERDUE_S, 2 * (rtt_s or 0.0)))


class Standing(IntEnum):
    """Ordered: who stands higher is preferred."""

    LOST = 0
    UNPROVEN = 1  #: new, or back and still held
    WELL = 2


class Cause(Enum):
    """Why a client was lost; the value is a metric label."""

    NONE = ""
    SILENT = "silent"
    STREAM = "stream"

    @property
    def words(self) -> str:
        return {"": "", "silent": "it does not answer", "stream": "it has no stream"}[self.value]


@dataclass(slots=True)
class Pulse:
    """One client's. `since` is when `standing` began; `missing` questions are unanswered, the first since `missing_since`;
    `stream_lost_at` None: it has a stream. `hold_s` is how long it is held when it comes back. `interval_s` is how often
    it is asked while all is well. `heard_at` is when it last spoke without having been asked."""

    since: float
    standing: Standing = Standing.UNPROVEN
    cause: Cause = Cause.NONE
    answered_at: float | None = None
    missing: int = 0
    missing_since: float = 0.0
    patience_s: float = PATIENCE_S
    silence_at: float = 0.0
    stream_lost_at: float | None = None
    hold_s: float = 0.0
    interval_s: float = INTERVAL_S
    heard_at: float = -math.inf

    @property
    def is_restless(self) -> bool:
        """Whether `judge` may find anything new."""
        return self.missing > 0 or self.standing is not Standing.WELL or self.stream_lost_at is not None

    def asked(self, now: float) -> None:
        if not self.missing:
            self.missing_since = now
        self.missing += 1

    def answered(self, now: float, *, alone: bool = True) -> None:
        """`alone` False: many others were as late, which says nothing about this one's path."""
        silence_s = now - self.missing_since if alone and self.missing >= NEAR_MISSING else 0.0
        if silence_s >= NEAR_S and self.standing is Standing.WELL:
            self.patience_s = max(self.patience_s, min(PATIENCE_MAX_S, PATIENCE_S + STRETCH * silence_s))
            self.silence_at = now
        elif now - self.silence_at > REMEMBERED_S:
            self.patience_s = PATIENCE_S
        self.missing = 0
        self.answered_at = now

    def heard(self, now: float) -> None:
        """It spoke without having been asked."""
        self.heard_at = now

    def stream(self, lost_at: float | None) -> None:
        """It has a stream (a new one perhaps), or has had none since then."""
        self.stream_lost_at = lost_at

    def is_suspect(self, now: float, rtt_s: float | None) -> bool:
        """Whether to ask again at SUSPECT_INTERVAL_S. One that is lost is not worth the hurry."""
        is_late = now - self.missing_since >= overdue_s(rtt_s)
        return self.missing > 0 and self.standing is not Standing.LOST and is_late

    def judge(self, now: float, *, patient: bool = True, stalled: bool = False) -> bool:
        """Look at what time has brought; True when the standing has changed. `patient` False: a client that comes back is
        relied on at once, because there is nothing to win by waiting. `stalled`: nobody's answers come in time, so that silence
        says little about one."""
        if self.standing is not Standing.LOST and (cause := self._why_lost(now, stalled)) is not Cause.NONE:
            again = self.hold_s and (self.standing is Standing.UNPROVEN or now - self.since < FORGIVEN_S)
            self.hold_s = min(HOLD_MAX_S, 2 * self.hold_s) if again else HOLD_S
            self.cause = cause
            self._become(Standing.LOST, now)
            return True
        if self.standing is Standing.WELL or self.answered_at is None or self.answered_at < self.since:
            return False
        if self.standing is Standing.LOST:
            if self.stream_lost_at is not None:
                return False
            self._become(Standing.UNPROVEN, now)
            if patient:
                return True
        if self.cause is Cause.NONE or not patient or (now - self.since >= self.hold_s and not self.missing):
            self.cause = Cause.NONE
            self._become(Standing.WELL, now)
            return True
        return False

    def _why_lost(self, now: float, stalled: bool) -> Cause:
        if self.stream_lost_at is not None and now - self.stream_lost_at >= STREAM_PATIENCE_S:
            return Cause.STREAM
        is_new = self.standing is Standing.UNPROVEN and self.answered_at is None
        patience_s = NEW_PATIENCE_S if is_new else self.patience_s
        if stalled:
            patience_s = PATIENCE_MAX_S
        if now - self.heard_at < HEARD_S:
            patience_s = HEARD_PATIENCE_S
        if self.missing >= MISSING_MIN and now - self.missing_since >= patience_s:
            return Cause.SILENT
        return Cause.NONE

    def _become(self, standing: Standing, now: float) -> None:
        self.standing = standing
        self.since = now
