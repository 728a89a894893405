"""The loop of every fuzz target: make an input, check it, count what came of it, stop at a finding."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: No input takes more than milliseconds; this many seconds are a hang on any machine.
HANG_S = 5.0

#: A check of one input and the inputs that are bent for it.
Target = tuple[Callable[[random.Random, bytes], str], Sequence[bytes]]


def drive(about: str | None, make: Callable[[random.Random], T], check: Callable[[random.Random, T], str]) -> int:
    """`TARGET --seconds S [--seed N]`: the exit code. `check` names the outcome; what it raises is a finding and is raised."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    until = time.monotonic() + args.seconds
    outcomes: Counter[str] = Counter()
    while (started := time.monotonic()) < until:
        data = make(rng)
        try:
            outcomes[check(rng, data)] += 1
            assert time.monotonic() - started < HANG_S, "a hang"
        except BaseException:
            print(f"finding after {outcomes.total()} inputs, seed {args.seed}: {data!r}", file=sys.stderr)
            raise
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{outcomes.total()} inputs in {args.seconds:g} s, seed {args.seed}: {counts}; no finding")
    return 0


def drive_targets(about: str | None, targets: Sequence[Target], bend: Callable[[random.Random, bytes], bytes]) -> int:
    """`drive` with a target chosen anew for each input."""

    def make(rng: random.Random) -> tuple[Callable[[random.Random, bytes], str], bytes]:
        check, seeds = rng.choice(targets)
        return check, bend(rng, rng.choice(seeds))

    def check(rng: random.Random, chosen: tuple[Callable[[random.Random, bytes], str], bytes]) -> str:
        target, data = chosen
        return f"{target.__name__.removeprefix('check_')} {target(rng, data)}"

    return drive(about, make, check)
