"""The IPAM against its model for long: a state machine of everything that can go wrong (lab.ipam.machine).

RHIZOME_SOAK_STEPS says how long (default 20,000; `make soak` records a million). A broken promise ends it with the steps that lead there.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context

from benchmarks.figure import Figure

STEPS = int(os.environ.get("RHIZOME_SOAK_STEPS", "20_000"))
#: How much of the steps each kind of store gets.
SHARES = {"memory": 0.8, "file": 0.1, "kubernetes": 0.1}
_SLICE = 10_000
_STEPS_OF_ONE = 50
#: Examples end early now and then.
_STEPS_ON_AVERAGE = 40


def run() -> Iterator[Figure]:
    work = [
        (kind, number) for kind, share in SHARES.items() for number in range(max(1, -(-int(STEPS * share) // _SLICE)))
    ]
    began = time.monotonic()
    done = dict.fromkeys(SHARES, 0)
    # A new process now and then, because examples leave memory behind. (An executor with max_tasks_per_child can hang: cpython#115634.)
    with get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=4) as pool:
        for kind, steps in pool.imap_unordered(_slice, work):
            done[kind] += steps
            print(f"{sum(done.values()):,} steps, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for kind, steps in done.items():
        yield Figure(f"ipam.soak.{kind}.steps", steps, "steps", n=steps, note="state machine against a plain model")
    seconds = time.monotonic() - began
    note = f"in {sum(done.values()):,} steps, which took {seconds:.0f} s"
    yield Figure("ipam.soak.violations", 0, "violations", n=sum(done.values()), note=note)


def _slice(work: tuple[str, int]) -> tuple[str, int]:
    """Run some thousand steps with a seed of their own. Raises what the machine finds."""
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    import ipam.stores.file
    from lab.ipam.machine import Machine

    kind, number = work
    logging.disable(logging.CRITICAL)
    ipam.stores.file.SPARE_LINES = 6

    class Here(Machine):
        kinds = (kind,)
        _hypothesis_internal_use_seed = number

    found = settings(
        max_examples=min(STEPS, _SLICE) // _STEPS_ON_AVERAGE,
        stateful_step_count=_STEPS_OF_ONE,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
        database=None,
    )
    run_state_machine_as_test(Here, settings=found)
    return kind, Here.steps
