"""How much data may be on its way: a window controlled by delay, so that the queue stands in our hands and not in a proxy.

The peer acknowledges UDP payload bytes end to end. The window grows while a round trip takes about as long as on an empty
path and shrinks when it takes `QUEUE_TARGET_S` longer. What "empty" means is measured again every `BASE_LIFETIME_S`: the
window is closed so far that the path runs dry for a round trip. Without that, a standing queue of our own making would in
time count as part of the path (the weak spot of every delay-based control, RFC 6817 section 4.2).
"""

from __future__ import annotations

from collections import deque
from math import inf

from agent.errors import BadMessage

FIRST_BYTES = 128 * 1024
LEAST_BYTES = 64 * 1024
MOST_BYTES = 16 * 1024 * 1024
QUEUE_TARGET_S = 0.020
#: Share of the window by which a round trip without any queue changes it, at most, and for a round trip that takes as long
#: as the target. The longer the round trip the later the answer, so the gain falls with it: the loop stays stable.
MOST_GAIN = 0.25
GAIN = 0.5
SLOW_START_EXIT = 0.7
#: The window changes only while so much of it is used: an idle sender learns nothing about the path.
USED = 0.5
#: Slow start also ends when so many rounds have not brought so much more throughput.
PATIENCE, BETTER = 3, 1.25
ROUND_LEAST_S = 0.1  # the time in which a queue that does not stand runs empty once (RFC 8289 section 4.3)
#: The window is at most so many times what the best of the last rounds would fill an empty path and the target with. In
#: bursts, the first packets find the path empty every time, and the last ones stand behind all that the window lets out.
SPARE, START_SPARE = 1.25, 2.0
RATES = 10
#: Data sent within this time shares one RTT sample.
SAMPLE_SPACING_S = 0.001

BASE_LIFETIME_S = 10.0
#: The same while the window is at its least and the path still looks full: rather, the path has become longer.
STARVED_LIFETIME_S = 3.0
#: A path that has become so much longer is another path: it is explored from scratch.
LONGER = 2.0
#: A sample so close to the base confirms it.
BASE_TOLERANCE_S = 0.002
#: While the base is measured, so much of what an empty path holds may be on its way.
PROBE_SHARE = 0.5
PROBE_LEAST_BYTES = 4 * 1500
#: A base that has fallen below this share of the one before was measured on a path that was not dry yet.
DRY = 0.8
_NEVER = -inf


class Base:
    """The round trip on an empty path: the least one seen, measured again when it has not been seen for a while."""

    __slots__ = ("_before_s", "_confirmed_at", "_drained_at", "_round_at", "limit_bytes", "rtt_s")

    def __init__(self) -> None:
        self.rtt_s = 0.0
        self._confirmed_at = _NEVER
        #: What may be on its way while the base is measured; None while it is not.
        self.limit_bytes: int | None = None
        self._before_s = 0.0
        self._drained_at: float | None = None
        self._round_at: float | None = None

    def sample(self, rtt_s: float, now: float) -> None:
        """A round trip that ended now; it is a measurement when it began after the path had run dry."""
        if rtt_s < self.rtt_s or self._confirmed_at == _NEVER:
            self.rtt_s = rtt_s
        if rtt_s <= self.rtt_s + BASE_TOLERANCE_S:
            self._confirmed_at = now
        sent_at = now - rtt_s
        if self._drained_at is None or sent_at < self._drained_at:
            return
        if self._round_at is None:
            # The first sample of the dry path replaces the old base; those of one more round trip may lower it.
            self.rtt_s = rtt_s
            self._confirmed_at = self._round_at = now
        elif sent_at >= self._round_at:
            self.limit_bytes = self._drained_at = self._round_at = None
            if self.rtt_s < DRY * self._before_s:
                self._confirmed_at = now - 2 * BASE_LIFETIME_S  # what we took for an empty path was not: once more

    def watch(self, on_way_bytes: int, rtt_s: float, lifetime_s: float, now: float) -> None:
        """Begin a measurement when the base has not been seen for `lifetime_s`, and note when the path has run dry."""
        if self.limit_bytes is None and now - self._confirmed_at >= lifetime_s:
            empty_path_bytes = on_way_bytes * self.rtt_s / rtt_s
            self.limit_bytes = max(PROBE_LEAST_BYTES, int(PROBE_SHARE * empty_path_bytes))
            self._before_s = self.rtt_s
        if self.limit_bytes is not None and self._drained_at is None and on_way_bytes <= self.limit_bytes:
            self._drained_at = now


class Round:
    """What the acknowledgements of one round trip, or of ROUND_LEAST_S, say. The least of their times counts: a queue that
    stands delays all of them; a lost segment, a busy processor or a bundle of acknowledgements only some."""

    __slots__ = ("acked", "rtt_s", "since", "until", "used")

    def __init__(self, until: int, since: float) -> None:
        #: The round is over when so many bytes are acknowledged, and time has passed since this moment.
        self.until = until
        self.since = since
        self.acked = 0
        self.rtt_s = inf
        #: The window was full enough at some time.
        self.used = False


class Window:
    """Delay-based window of one stream (after LEDBAT, RFC 6817, with slow start and the periodic measurement above)."""

    __slots__ = (
        "_acked",
        "_base",
        "_flights",
        "_lost",
        "_marked",
        "_rates",
        "_round",
        "_slow_start",
        "queue_delay_s",
        "sent",
        "size",
    )

    def __init__(self) -> None:
        #: UDP payload bytes put on the stream, since its start.
        self.sent = 0
        self._acked = 0
        #: Bytes that a hop threw away, as it may do with datagrams: never to be acknowledged.
        self._lost = 0
        self._marked = 0
        #: What was sent and when, as (value of `sent` behind it, time), oldest first.
        self._flights: deque[tuple[int, float]] = deque()
        self._base = Base()
        self._round = Round(1, _NEVER)
        #: Bytes per second of the last rounds in which the window was used.
        self._rates: deque[float] = deque(maxlen=RATES)
        self._slow_start = True
        self.size = FIRST_BYTES
        #: How much longer than on an empty path the last round trip took; None before the first one.
        self.queue_delay_s: float | None = None

    @property
    def on_way(self) -> int:
        """Bytes sent and not acknowledged."""
        return self.sent - self._acked

    @property
    def unanswered_since(self) -> float | None:
        """When the oldest of them was sent."""
        return self._flights[0][1] if self._flights else None

    @property
    def room(self) -> int:
        """Bytes that may be sent now; zero or less: none."""
        limit = self._base.limit_bytes
        return (self.size if limit is None else limit) - self.sent + self._acked

    def on_sent(self, size: int, now: float) -> None:
        self.sent += size
        if self._flights and now - self._flights[-1][1] < SAMPLE_SPACING_S:
            self._flights[-1] = (self.sent, self._flights[-1][1])
        else:
            self._flights.append((self.sent, now))

    def on_ack(self, received_bytes: int, now: float) -> float | None:
        """The peer has received so much since the start. Returns the round trip of the newest data it covers, if that is known.

        An older value than before changes nothing. Raises BadMessage when it is more than was sent.
        """
        acked = received_bytes + self._lost
        if acked > self.sent:
            raise BadMessage(f"{received_bytes} bytes acknowledged, {self.sent - self._lost} were sent")
        if acked <= self._acked:
            return None
        self._round.used |= self.on_way >= USED * self.size
        self._round.acked += acked - self._acked
        grown, self._acked = acked - self._acked, acked
        sent_at = self._landed()
        if sent_at is None:
            return None
        rtt_s = max(now - sent_at, 1e-6)
        before_s = self._base.rtt_s
        self._base.sample(rtt_s, now)
        if self._base.rtt_s > LONGER * before_s:
            self._slow_start = True
        self._round.rtt_s = min(self._round.rtt_s, rtt_s)
        if self._slow_start and self._round.used:
            self._resize(self.size + grown)
        if self._acked >= self._round.until and (self._slow_start or now - self._round.since >= ROUND_LEAST_S):
            self._end_round(now)
        lifetime_s = STARVED_LIFETIME_S if self.size == LEAST_BYTES else BASE_LIFETIME_S
        self._base.watch(self.on_way, rtt_s, lifetime_s, now)
        return rtt_s

    def on_rtt(self, rtt_s: float, now: float) -> None:
        """A ping came back. Mostly the stream was idle, and then this is the round trip on an empty path."""
        self._base.sample(rtt_s, now)

    def mark(self) -> None:
        """A ping is sent now, behind all data so far."""
        self._marked = self.sent

    def resync(self) -> None:
        """The pong came back over the ordered stream: what was sent before the mark has been acknowledged or never will be."""
        if self._marked > self._acked:
            self._lost += self._marked - self._acked
            self._acked = self._marked
            self._landed()

    def _landed(self) -> float | None:
        """Forget what is acknowledged; returns when the newest of it was sent."""
        sent_at = None
        while self._flights and self._flights[0][0] <= self._acked:
            sent_at = self._flights.popleft()[1]
        return sent_at

    def _end_round(self, now: float) -> None:
        done, self._round = self._round, Round(self.sent, now)
        queue_delay_s = self.queue_delay_s = max(0.0, done.rtt_s - self._base.rtt_s)
        if done.since == _NEVER or not done.used or self._base.limit_bytes is not None:
            return  # nothing is to be learned; or the base is being measured, and the window is closed for that
        self._rates.append(done.acked / max(now - done.since, SAMPLE_SPACING_S))
        if self._slow_start:
            if queue_delay_s > QUEUE_TARGET_S or self._rate_stands():
                self._slow_start = False
                self._resize(self.size * SLOW_START_EXIT)
            return
        off_target = max(-1.0, min(1.0, (QUEUE_TARGET_S - queue_delay_s) / QUEUE_TARGET_S))
        gain = MOST_GAIN if off_target > 0.5 else min(MOST_GAIN, GAIN * QUEUE_TARGET_S / self._base.rtt_s)
        self._resize(self.size + gain * min(done.acked, self.size) * off_target)

    def _rate_stands(self) -> bool:
        """The last rounds were not much better than those before them: the path is full."""
        rates = tuple(self._rates)
        before, last = rates[:-PATIENCE], rates[-PATIENCE:]
        return bool(before) and max(last) < BETTER * max(before)

    def _resize(self, size: float) -> None:
        spare = START_SPARE if self._slow_start else SPARE
        useful = spare * max(self._rates, default=inf) * (self._base.rtt_s + QUEUE_TARGET_S)
        self.size = int(max(LEAST_BYTES, min(MOST_BYTES, useful, size)))
