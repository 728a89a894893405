"""One identity at work in two places: seen when a process that was replaced comes back. Pure.

A client that is restarted is a new process, and its old one never comes back. Two live ones that show the same credential
replace each other again and again: A, B, A. Who of them is the thief cannot be told from here, so both are kept out, until
only one has been seen for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Who was replaced longer ago than this and comes back has only been away.
WINDOW_S = 300.0
#: After the last sign of a second process. Those who are kept out come back every minute.
QUIET_S = 180.0
_PROCESSES_MAX = 8


@dataclass(slots=True)
class _Sightings:
    latest: str
    seen: dict[str, float] = field(default_factory=dict)
    fenced_until: float = 0.0


class Fence:
    """Who was seen, by identity. `contested` counts identities that were found in two places, or of whose one-time token two
    machines knew, since this process started."""

    def __init__(self) -> None:
        self.contested = 0
        self._by_key: dict[str, _Sightings] = {}

    def sight(self, key: str, process: str, now: float) -> bool:
        """`process` enrols as `key`; whether the identity is at work in two places. `now` is monotonic."""
        known = self._by_key.setdefault(key, _Sightings(process))
        known.seen = {name: at for name, at in known.seen.items() if now - at <= WINDOW_S}
        returned = process != known.latest and process in known.seen
        known.seen[known.latest] = now  # it was at work until now
        known.latest = process
        known.seen[process] = now
        while len(known.seen) > _PROCESSES_MAX:
            del known.seen[min(known.seen, key=known.seen.__getitem__)]
        if returned:
            self.contested += known.fenced_until <= now
            known.fenced_until = now + QUIET_S
        elif known.fenced_until and known.fenced_until <= now:
            known.fenced_until, known.seen = 0.0, {process: now}
        return known.fenced_until > now

    def fenced(self, now: float) -> tuple[str, ...]:
        """The identities that are kept out now."""
        return tuple(sorted(key for key, known in self._by_key.items() if known.fenced_until > now))

    def forget(self, before: float) -> None:
        """Those that were not seen since."""
        for key in [key for key, known in self._by_key.items() if max(known.seen.values(), default=0.0) < before]:
            del self._by_key[key]
