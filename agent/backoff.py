"""Exponential backoff with full jitter: when to try again after a failure.

The n-th delay is uniform between zero and `first_s` doubled n times, at most `cap_s`. Full jitter spreads a thousand
clients that lost the same server over the whole interval, and its first delays are near zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Counts failures in a row. Times are seconds; `uniform(low, high)` is where the jitter comes from."""

    first_s: float
    cap_s: float
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = 0

    def ceiling_s(self) -> float:
        """What the next delay will not exceed."""
        # Doubling is stopped long before a float overflows; the cap has been reached by then.
        return min(self.cap_s, self.first_s * 2.0 ** min(self.failures, 64))

    def next(self) -> float:
        """Count one more failure and say how long to wait."""
        delay = self.uniform(0.0, self.ceiling_s())
        self.failures += 1
        return delay

    def reset(self) -> None:
        """It worked: the next failure is the first one again."""
        self.failures = 0
