"""Safeguards of the IPAM, each taken away by a function: whoever tests the IPAM has to notice every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import replace
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import ipam.allocate
import ipam.gc
import ipam.ledger
import ipam.model
import ipam.service
import ipam.stores.file
import ipam.stores.kubernetes
import ipam.stores.memory
import ipam.stores.shards
import lab.ipam.machine
import lab.ipam.maps
from agent.errors import PoolExhausted, RhizomeError
from ipam.collect import Candidates
from ipam.ledger import Ledger
from ipam.model import Allocation, Block, NotOwner, Owner, Policy, Pool
from ipam.stores import Version
from ipam.stores.kubeapi import Object


class Patch(Protocol):
    """What we need of pytest.MonkeyPatch."""

    def setattr(self, target: object, name: str, value: object) -> None: ...


Mutation = Callable[[Patch], None]
MAX_EXAMPLES = 400


def is_noticed(mutation: Mutation, kind: str, patch: pytest.MonkeyPatch) -> bool:
    """Whether the state machine finds fault with an IPAM that lacks this safeguard, on this kind of store."""

    class Here(lab.ipam.machine.Machine):
        kinds = (kind,)

    mutation(patch)
    once = settings(
        max_examples=MAX_EXAMPLES,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(Here, settings=once)
    except (AssertionError, RhizomeError, KeyError):
        return True
    return False


def without_compare_and_swap(patch: Patch) -> None:
    """Every store takes whatever comes last."""

    async def write(self: Any, ledger: Ledger, version: Version) -> None:
        self._ledger = ledger

    original = ipam.stores.file.FileStore._write

    def onto_anything(self: Any, ledger: Ledger, version: Version) -> None:
        state = self._look()
        current = state.ledger if state is not None else Ledger()
        newer = Ledger.of(ledger, max(ledger.generation, current.generation + 1))
        original(self, newer, state.version if state is not None else Version("absent"))

    def put(self: Any, name: str, known: Object | None, text: str) -> Object:
        written: Object = self.server.put(name, f"uid-{name}", text)
        return written

    patch.setattr(ipam.stores.memory.MemoryStore, "write", write)
    patch.setattr(ipam.stores.file.FileStore, "_write", onto_anything)
    patch.setattr(lab.ipam.maps.Client, "_write", put)


def without_the_uid(patch: Patch) -> None:
    """A name is enough to release what another incarnation holds."""
    original = ipam.allocate.release

    def by_name(ledger: Ledger, policy: Policy, owner: Owner, now: float) -> Ledger:
        try:
            return original(ledger, policy, owner, now)
        except NotOwner:
            same = (a.owner for a in ledger if a.owner.name == owner.name and not a.resting)
            return original(ledger, policy, next(same, owner), now)

    patch.setattr(ipam.service, "release", by_name)


def without_quarantine(patch: Patch) -> None:
    """What is released is free at once."""
    original = ipam.allocate.release

    def at_once(ledger: Ledger, policy: Policy, owner: Owner, now: float) -> Ledger:
        return original(ledger, replace(policy, quarantine_s=0.0), owner, now)

    patch.setattr(ipam.service, "release", at_once)


def without_stickiness(patch: Patch) -> None:
    """Who comes again gets something new."""
    patch.setattr(Ledger, "get", lambda self, owner: None)


def without_the_other_family(patch: Patch) -> None:
    """IPv4 alone when there is no IPv6."""
    original = ipam.allocate.allocate

    def lenient(ledger: Ledger, policy: Policy, *more: Any) -> tuple[Ledger, Allocation]:
        try:
            return original(ledger, policy, *more)
        except PoolExhausted:
            return original(ledger, Policy(policy.pools[:1]), *more)

    patch.setattr(ipam.service, "allocate", lenient)


def without_the_lowest(patch: Patch) -> None:
    """The second free block."""
    original = Ledger.lowest_free

    def second(self: Ledger, pool: Pool, after: int | None = None) -> Block | None:
        first = original(self, pool)
        return first and (original(self, pool, first.number) or first)

    patch.setattr(Ledger, "lowest_free", second)


def without_other_lengths(patch: Patch) -> None:
    """Only blocks of the same length count: a pool that is cut differently gives again what it gave."""
    patch.setattr(Ledger, "_other_lengths", lambda self, pool: ())


def without_completeness(patch: Patch) -> None:
    """The search gives up after the first range."""
    original = Ledger._first_free

    def lazy(self: Ledger, pool: Pool, ranges: Iterable[tuple[int, int]]) -> Block | None:
        return original(self, pool, list(ranges)[:1])

    patch.setattr(Ledger, "_first_free", lazy)


def without_expiry(patch: Patch) -> None:
    """What has ended goes on."""
    patch.setattr(ipam.allocate, "settle", lambda ledger, policy, now: ledger)


def without_the_second_list(patch: Patch) -> None:
    """The garbage collector believes its first list."""
    original = ipam.gc.GarbageCollector.run_once

    async def credulous(self: Any, now: float, monotonic: float, *, force: bool = False) -> Any:
        known: list[Set[Owner]] = []
        living = self._living

        async def once() -> Set[Owner]:
            if not known:
                known.append(await living())
            return known[0]

        self._living = once
        try:
            return await original(self, now, monotonic, force=force)
        finally:
            self._living = living

    patch.setattr(ipam.gc.GarbageCollector, "run_once", credulous)


def without_grace(patch: Patch) -> None:
    """The garbage collector releases whoever is missing once."""

    def at_once(candidates: Candidates, ledger: Ledger, monotonic: float, grace_s: float) -> tuple[Allocation, ...]:
        return tuple(a for owner in candidates if (a := ledger.get(owner)) is not None and not a.resting)

    patch.setattr(ipam.gc, "ripe", at_once)


def without_claims(patch: Patch) -> None:
    """In Kubernetes, entries are written and addresses are not claimed."""
    original = ipam.stores.shards.rounds
    patch.setattr(
        ipam.stores.kubernetes,
        "rounds",
        lambda before, after, count: replace(original(before, after, count), claim={}),
    )


#: The safeguards without which nothing else is worth much.
THE_THREE: tuple[Mutation, ...] = (without_compare_and_swap, without_the_uid, without_quarantine)
ANYWHERE: tuple[Mutation, ...] = (
    *THE_THREE,
    without_stickiness,
    without_the_other_family,
    without_the_lowest,
    without_other_lengths,
    without_completeness,
    without_expiry,
    without_the_second_list,
    without_grace,
)
IN_KUBERNETES: tuple[Mutation, ...] = (*THE_THREE, without_claims)
