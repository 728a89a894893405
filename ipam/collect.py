"""Garbage collection in two phases, pure: who seems to be gone, and who has seemed so for long enough.

    held -- not in the list of the living --> candidate -- grace is over, and a list read just now still lacks it --> released
                                                 |
                                                 +-- in a list again, or changed its allocation --> held

A list of the living may be stale or cut short; so one list never frees an address, nor does a clock: the grace is counted
on a monotonic clock, from the first list that lacked the owner. What is freed goes through quarantine like everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from ipam.ledger import Ledger
from ipam.model import Allocation, Owner, Pool

#: How long an owner has to be missing.
GRACE_S = 900.0
#: A sweep that would free more of any pool than this only says so: rather a broken list than so many dead.
SHARE_MAX = 0.10


@dataclass(frozen=True, slots=True)
class Candidate:
    """An owner that a list of the living lacked. `since` is monotonic, `generation` its allocation's at that time."""

    generation: int
    since: float


Candidates = Mapping[Owner, Candidate]


def mark(
    known: Candidates, ledger: Ledger, judged: Callable[[Owner], bool], alive: Set[Owner], monotonic: float
) -> dict[Owner, Candidate]:
    """The candidates after a complete list of the living. `judged` says which owners the list is about; others are let be."""
    found = {}
    for allocation in ledger:
        owner = allocation.owner
        if allocation.resting or owner in alive or not judged(owner):
            continue
        before = known.get(owner)
        same = before is not None and before.generation == allocation.generation
        found[owner] = before if before is not None and same else Candidate(allocation.generation, monotonic)
    return found


def ripe(candidates: Candidates, ledger: Ledger, monotonic: float, grace_s: float = GRACE_S) -> tuple[Allocation, ...]:
    """The allocations of those that were missing all through the grace period and did not change."""
    due = (owner for owner, candidate in candidates.items() if monotonic - candidate.since >= grace_s)
    held = (ledger.get(owner) for owner in due)
    return tuple(a for a in held if a is not None and not a.resting and a.generation == candidates[a.owner].generation)


def too_many(doomed: Iterable[Allocation], pools: Iterable[Pool], most: float = SHARE_MAX) -> tuple[str, ...]:
    """The pools of which a sweep would free more than this share of all blocks; in words."""
    blocks = [block for allocation in doomed for block in allocation.blocks]
    problems = []
    for pool in pools:
        count = sum(pool.covers(block) for block in blocks)
        if count > most * pool.size:
            problems.append(f"{count} of the {pool.size} blocks of pool {pool}")
    return tuple(problems)
