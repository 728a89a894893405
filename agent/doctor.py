"""What is wrong with a role, by the ids of the alerts: two looks at its status some seconds apart, one finding per id. Pure.

The numbers are the alerts' own, and tests hold that both mean the same. An alert waits before it fires, and remembers; a doctor
sees what is, and what the daemon has counted since it started. Where that is too little to be sure of, it says so with WARN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from agent.health import FENCED, canary_is_fresh, duration
from agent.status import Counts, RoleStatus, Verdict

#: Fewer events than this may be a burst: a client that joins, a proxy that is started again.
EVENTS_MIN = 10

_DAY_S = 86400.0
_HOUR_S = 3600.0
_NAMED_MAX = 5


class Outcome(IntEnum):
    """BAD: what the alert asks for is so. WARN: something of it was seen, too little to be sure, or it is for information."""

    OK = 0
    WARN = 1
    BAD = 2

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Process:
    """What the kernel says of a daemon's process, None where it is not known. `age_s` since its start."""

    open_fds: int | None = None
    max_fds: int | None = None
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Looks:
    """A role, looked at twice, `seconds` apart, and its process at the second look."""

    before: RoleStatus
    now: RoleStatus
    seconds: float
    process: Process = Process()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a condition has found. `words` may hold text from the other side."""

    outcome: Outcome
    words: str


Condition = Callable[[Looks], Seen]


@dataclass(frozen=True, slots=True)
class Check:
    """`id` and `severity` are those of the alert, `next` is what its runbook's page begins with under "Do"."""

    id: str
    severity: str
    condition: Condition
    next: str


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check. `runbook` is the page's path in the repository."""

    id: str
    outcome: Outcome
    severity: str
    seen: str
    next: str
    runbook: str


def examine(checks: Iterable[Check], looks: Looks) -> tuple[Finding, ...]:
    """One finding per check, in the checks' order. What is only information is never BAD."""
    found = []
    for check in checks:
        seen = check.condition(looks)
        outcome = min(seen.outcome, Outcome.WARN) if check.severity == "info" else seen.outcome
        page = f"docs/runbooks/{check.id}.md"
        found.append(Finding(check.id, outcome, check.severity, seen.words, check.next, page))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Rate:
    """More than `limit` events within `within_s` seconds are too many: of one kind, or of all kinds `together`.

    BAD: that many were seen; with a limit of 0 also when the process is younger than `within_s` and has counted any. Even events
    that come evenly are one more in some stretches of time than in others, and that one does not count.
    """

    what: str
    counts: Callable[[RoleStatus], Counts]
    limit: float
    within_s: float
    together: bool = False

    def __call__(self, looks: Looks) -> Seen:
        before, now = dict(self.counts(looks.before)), dict(self.counts(looks.now))
        # A counter that is less than before is that of a process that was started in between.
        news = {
            word: count - before.get(word, 0) if count >= before.get(word, 0) else count for word, count in now.items()
        }
        groups = [list(now)] if self.together else [[word] for word in now]
        judged = [(self._judge(looks, sum(news[w] for w in g), sum(now[w] for w in g)), g) for g in groups]
        outcome = max((outcome for outcome, _ in judged), default=Outcome.OK)
        told = [word for found, group in judged for word in group if found is outcome and now[word]]
        return Seen(outcome, self._words(looks, {word: (news[word], now[word]) for word in told}))

    def _judge(self, looks: Looks, new: int, total: int) -> Outcome:
        share = looks.seconds / self.within_s
        age_s = looks.process.age_s
        if self.limit == 0:
            if new or (total and age_s is not None and age_s <= self.within_s):
                return Outcome.BAD
            return Outcome.WARN if total else Outcome.OK
        if new >= EVENTS_MIN and new - 1 >= self.limit * share:
            return Outcome.BAD
        on_average = age_s is not None and total > self.limit * max(age_s / self.within_s, 1.0)
        return Outcome.WARN if new > self.limit * share or on_average else Outcome.OK

    def _words(self, looks: Looks, told: dict[str, tuple[int, int]]) -> str:
        age_s = looks.process.age_s
        started = f" {_span(age_s)} ago" if age_s is not None else ""
        new = _named((f"{word} {news}".strip() for word, (news, _) in told.items() if news), "none")
        total = _named((f"{word} {count}".strip() for word, (_, count) in told.items()), "none")
        allowed = f" (allowed: {self.limit:g} within {_span(self.within_s)})" if self.limit else ""
        return f"{self.what}: {new} within {_span(looks.seconds)}{allowed}, {total} since the daemon started{started}"


def verdict_is(bad: Verdict) -> Condition:
    """The role's own verdict, and for how long it stands."""

    def condition(looks: Looks) -> Seen:
        status = looks.now
        words = f"{status.verdict.value} for {duration(status.since_s)}: {status.sentence}"
        if status.verdict is bad and len(status.causes) > 1:
            words += f" (also: {'; '.join(status.causes[1:])})"
        return Seen(_bad(status.verdict is bad), words)

    return condition


def silent_peers(looks: Looks) -> Seen:
    peers = looks.now.peers
    silent = [p for p in peers if not canary_is_fresh(p.canary_age_s)]
    if not silent:
        return Seen(Outcome.OK, f"{len(peers)} of {len(peers)} answer")
    rows = (f"{p.name} ({_ago('last answer', p.canary_age_s)}{', ' + p.path if p.path else ''})" for p in silent)
    return Seen(Outcome.BAD, f"{len(silent)} of {len(peers)} without an answer: {_named(rows)}")


def uncarried(looks: Looks) -> Seen:
    ranges = looks.now.ranges
    bare = [f"{item.prefix} ({item.kind})" for item in ranges if not item.carrier]
    if not bare:
        return Seen(Outcome.OK, f"{len(ranges)} of {len(ranges)} declared ranges are carried")
    return Seen(Outcome.BAD, f"{len(bare)} of {len(ranges)} declared ranges are carried by no client: {_named(bare)}")


def stale_handshakes(looks: Looks) -> Seen:
    ages = [(peer.handshake_age_s, peer.name) for peer in looks.now.peers if peer.handshake_age_s is not None]
    stale = [f"{name} ({_ago('last handshake', age)})" for age, name in ages if age > 240]
    if stale:
        return Seen(Outcome.BAD, f"{len(stale)} of {len(looks.now.peers)} without a session: {_named(stale)}")
    return Seen(Outcome.OK, _ago("oldest handshake", max(ages)[0]) if ages else "nobody has shaken hands yet")


def pool_over(share: float) -> Condition:
    """Of the addresses of a tunnel network, how much is taken."""

    def condition(looks: Looks) -> Seen:
        full, words = False, []
        for pool in looks.now.pools:
            full = full or pool.size - pool.free > share * pool.size
            kept = f"{pool.used} held, {pool.quarantined} at rest, {pool.orphaned} of an older pool"
            words.append(f"{pool.network}: {pool.size - pool.free} of {pool.size} taken ({kept})")
        return Seen(_bad(full), "; ".join(words) or "there is no pool")

    return condition


def certificate_ends(looks: Looks) -> Seen:
    left = looks.now.certificate_expires_in_s
    return Seen(_bad(left is not None and left < 2 * _HOUR_S), _left("certificate", left))


def certificate_is_left(looks: Looks) -> Seen:
    """Less than a week, and issued more than a day ago: those of a day that are renewed in time are well."""
    left, lifetime = looks.now.certificate_expires_in_s, looks.now.certificate_lifetime_s
    words = _left("certificate", left)
    if left is None or left >= 7 * _DAY_S:
        return Seen(Outcome.OK, words)
    if lifetime is None:
        return Seen(Outcome.WARN, f"{words}; when it was issued is not known")
    return Seen(_bad(lifetime - left > 86000), f"{words}, issued {_span(lifetime - left)} ago")


def token_is_left(looks: Looks) -> Seen:
    left, lifetime = looks.now.token_expires_in_s, looks.now.token_lifetime_s
    words = _left("token", left)
    if left is None or lifetime is None:
        return Seen(Outcome.OK, words)
    return Seen(_bad(left < 0.15 * lifetime), f"{words}, of {_span(lifetime)} that it was issued for")


def grant_ends(looks: Looks) -> Seen:
    left = looks.now.grant_expires_in_s
    return Seen(_bad(left is not None and left < 300), _left("grant", left))


def descriptors(looks: Looks) -> Seen:
    used, most = looks.process.open_fds, looks.process.max_fds
    if used is None or not most:
        return Seen(Outcome.WARN, "the daemon's metrics do not say how many file descriptors it has")
    return Seen(_bad(used > 0.8 * most), f"{used} of {most} file descriptors are used")


_CONFLICTS = Rate("identities found in two places", lambda status: (("", status.counters.conflicts),), 0, 15 * 60)


def in_two_places(looks: Looks) -> Seen:
    seen = _CONFLICTS(looks)
    fenced = [cause for cause in looks.now.causes if cause.startswith(FENCED)]
    return Seen(Outcome.BAD, "; ".join((*fenced, seen.words))) if fenced else seen


_ROTATIONS = Rate(
    "rotations of WireGuard's keys",
    lambda status: tuple((word, count) for word, count in status.counters.rotations if word == "failed"),
    0,
    3600,
)


def rotations_fail(looks: Looks) -> Seen:
    seen, status = _ROTATIONS(looks), looks.now
    age = f"; the key in use is {_span(status.key_age_s)} old" if status.key_age_s is not None else ""
    return Seen(seen.outcome, seen.words + age + (f"; {status.rotation}" if status.rotation else ""))


def drops(status: RoleStatus) -> Counts:
    """By reason, of all paths: without those of a queue that does its work, and of a stream that is away."""
    totals: dict[str, int] = {}
    for path in status.paths:
        for reason, count in path.drops:
            if reason not in ("codel", "no_stream"):
                totals[reason] = totals.get(reason, 0) + count
    return tuple(totals.items())


def egress_fails(looks: Looks) -> Seen:
    """More than half of the dials fail, and there are more than one in twenty seconds."""
    if looks.now.egress is None:
        return Seen(Outcome.OK, "there is no egress proxy")
    before = dict(looks.before.egress.dials) if looks.before.egress is not None else {}
    news = {word: count - before.get(word, 0) for word, count in looks.now.egress.dials}
    if min(news.values(), default=0) < 0:  # the proxy was started in between
        news = dict(looks.now.egress.dials)
    dialled = sum(news.values())
    failed = {word: count for word, count in news.items() if count and not word.endswith(" ok")}
    words = f"{sum(failed.values())} of {dialled} dials failed within {_span(looks.seconds)}"
    if sum(failed.values()) <= 0.5 * dialled or dialled <= 0.05 * looks.seconds:
        return Seen(Outcome.OK, words)
    words += f": {_named(f'{word} {count}' for word, count in failed.items())}"
    if looks.now.egress.last_failure:
        words += f"; the last one: {looks.now.egress.last_failure}"
    return Seen(Outcome.BAD if dialled >= EVENTS_MIN else Outcome.WARN, words)


def _bad(is_bad: bool) -> Outcome:
    return Outcome.BAD if is_bad else Outcome.OK


def _left(what: str, left_s: float | None) -> str:
    if left_s is None:
        return f"there is no {what}"
    return f"the {what} ends in {_span(left_s)}" if left_s > 0 else f"the {what} has ended"


def _ago(what: str, age_s: float | None) -> str:
    return f"{what} {duration(age_s)} ago" if age_s is not None else f"{what}: never"


def _span(seconds: float) -> str:
    """As `duration`, without what is nothing: 15m, not 15m00s."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    return duration(seconds).removesuffix("00s").removesuffix("00m").removesuffix("00h")


def _named(items: Iterable[str], nothing: str = "") -> str:
    listed: Sequence[str] = list(items)
    more = len(listed) - _NAMED_MAX
    return (", ".join(listed[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")) or nothing
