"""Counts of the egress process since it started. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from seed_server.egress.verdict import Failure, Stage

#: Upper bounds in seconds, as kube-apiserver has them for its own side of the dial, and finer where ours are.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

NEWS_S = 60.0


class Tally:
    """Dials by stage and result, and how long the successful ones took from the head to the answer."""

    def __init__(self) -> None:
        self.dials: Counter[tuple[str, str]] = Counter()
        self.latency_sum_s = 0.0
        self.last_failure = ""
        self._told: dict[str, float] = {}
        self._buckets = [0] * (len(BOUNDS_S) + 1)

    def succeeded(self, seconds: float) -> None:
        self.dials[Stage.DIAL.value, "ok"] += 1
        self.latency_sum_s += seconds
        self._buckets[bisect_left(BOUNDS_S, seconds)] += 1

    def failed(self, failure: Failure, target: str) -> None:
        self.dials[failure.stage.value, failure.result] += 1
        self.last_failure = f"{target}: {failure.words}" if target else failure.words

    def is_news(self, failure: Failure, now: float) -> bool:
        """Whether people should read of it: once per kind and NEWS_S, because a dead tunnel is asked for again and again."""
        if now - self._told.get(failure.result, -NEWS_S) < NEWS_S:
            return False
        self._told[failure.result] = now
        return True

    def rows(self) -> tuple[tuple[str, str, int], ...]:
        return tuple((stage, result, count) for (stage, result), count in sorted(self.dials.items()))

    def latency(self) -> tuple[tuple[float, int], ...]:
        """Per bucket (not cumulative); the last one's bound is written as -1."""
        return tuple(zip((*BOUNDS_S, -1.0), self._buckets, strict=True))
