"""Which of two paths to take: the stream, which always works if anything does, or direct UDP, which is better. Pure.

    STREAM --direct canaries for PROVE_S, not held down--> DIRECT --no canary for SILENT_S--> STREAM, held down

One starts on the stream, and never leaves a path for one that does not answer either. A path that failed is held down: 30 s at first, twice as long each time that it fails again soon
after it was taken, at most ten minutes. Without a stream that works there is nothing to lose, and the direct path is taken
as soon as it answers at all. Times are monotonic seconds; an age is how long ago a canary crossed in both directions, None
for never.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from agent.messages import DIRECT, STREAM

#: A canary goes out every second, and ten times a second while one is missing: two have been missed.
SILENT_S = 2.2
#: Younger than this, the path answers. One canary may be late.
ANSWERS_S = 1.6
PROVE_S = 3.0
HOLD_S, HOLD_MAX_S = 30.0, 600.0
#: Whoever has held for so long begins anew with HOLD_S.
FORGIVEN_S = 600.0


class Path(Enum):
    STREAM = STREAM
    DIRECT = DIRECT


@dataclass(frozen=True, slots=True)
class Ladder:
    """`since` is when `path` was taken, `good_since` since when direct canaries cross without a pause, None while they do
    not; `held_until` is when the direct path may be taken again, `hold_s` how long that was. `moves` counts changes."""

    path: Path = Path.STREAM
    since: float = 0.0
    good_since: float | None = None
    held_until: float = 0.0
    hold_s: float = 0.0
    moves: int = 0

    def step(self, stream_age_s: float | None, direct_age_s: float | None, now: float) -> Ladder:
        """Look again. Call several times a second."""
        if self.path is Path.DIRECT:
            if _crosses(direct_age_s, SILENT_S) or not _crosses(stream_age_s, SILENT_S):
                return self
            settled = now - self.since >= FORGIVEN_S
            hold_s = HOLD_S if settled or not self.hold_s else min(HOLD_MAX_S, 2 * self.hold_s)
            return Ladder(Path.STREAM, now, None, now + hold_s, hold_s, self.moves + 1)
        if not _crosses(direct_age_s, ANSWERS_S):
            return self if self.good_since is None else replace(self, good_since=None)
        good_since = now if self.good_since is None else self.good_since
        proven = now >= self.held_until and now - good_since >= PROVE_S
        if proven or not _crosses(stream_age_s, SILENT_S):
            return replace(self, path=Path.DIRECT, since=now, good_since=good_since, moves=self.moves + 1)
        return replace(self, good_since=good_since)


def _crosses(age_s: float | None, limit_s: float) -> bool:
    return age_s is not None and age_s < limit_s
