"""Addresses out of a store: read, decide, compare-and-swap, and again when somebody else was faster."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from agent.errors import Conflict, RhizomeError
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import Allocation, Owner, Policy, Pool
from ipam.stores import Store
from ipam.usage import Usage, usage

log = logging.getLogger("rhizome.ipam")

T = TypeVar("T")

ATTEMPTS = 10
BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 1.0
#: So many decisions go into one write: one sync of the disk, or one round trip, for all of them.
BATCH_MAX = 256
#: A pool that becomes this full is told in the log, once.
ALARMS = (0.80, 0.95)

Decide = Callable[[Ledger], tuple[Ledger, T]]


@dataclass(slots=True, eq=False)
class _Call(Generic[T]):
    """Somebody who waits for the answer to a decision."""

    decide: Decide[T]
    answer: T | None = None
    error: RhizomeError | None = None
    done: bool = False
    wrote: bool = False


class AddressBook:
    """What a role needs of the IPAM. Every answer rests on a complete read of the store; what `ensure` returns is committed.

    Calls in one process that come while a write is under way share the next write; other processes on the same store are
    met by compare-and-swap.
    """

    def __init__(self, store: Store, policy: Policy, attempts: int = ATTEMPTS) -> None:
        self.policy = policy
        self._store = store
        self._attempts = attempts
        self._turn = asyncio.Lock()
        self._waiting: list[_Call[Any]] = []
        self._last = Ledger()
        self._alarmed: dict[Pool, float] = {}

    async def ensure(self, owner: Owner, now: float, expires: float | None = None) -> Allocation:
        """The owner's allocation, made when there was none (see `ipam.allocate.allocate`); times in seconds since the epoch.

        Raises PoolExhausted, NotHeld, StoreError, and Conflict after too many lost races. After a StoreError the allocation
        may have been made: ask again, the answer is the same.
        """
        allocation, wrote = await self.transact(lambda ledger: allocate(ledger, self.policy, owner, now, expires))
        if wrote and allocation.since == now:
            addresses = ", ".join(map(str, allocation.blocks))
            fields = {"event": "address.granted", "owner": str(owner), "generation": allocation.generation}
            log.info("%s has %s", owner, addresses, extra=fields)
        return allocation

    async def release(self, owner: Owner, now: float) -> Allocation | None:
        """The owner's addresses rest from now on; nothing happens when it has none. Returns what it held until now.

        Raises NotOwner, StoreError, and Conflict after too many lost races.
        """
        held, _ = await self.transact(lambda ledger: (release(ledger, self.policy, owner, now), ledger.get(owner)))
        if held is None or held.resting:
            return None
        log.info("%s released its addresses", owner, extra={"event": "address.released", "owner": str(owner)})
        return held

    async def ledger(self) -> Ledger:
        """The whole ledger as the store has it. Raises StoreError."""
        self._last, _ = await self._store.read()
        return self._last

    @property
    def known(self) -> Ledger:
        """The ledger as it was read or written last."""
        return self._last

    def usage(self) -> tuple[tuple[Pool, Usage], ...]:
        """How full the pools were when the ledger was read or written last."""
        return tuple((pool, usage(self._last, pool)) for pool in self.policy.pools)

    async def transact(self, decide: Decide[T]) -> tuple[T, bool]:
        """Commit what `decide` makes of the ledger; its answer, and whether that changed anything.

        `decide` is pure and may be called several times. An error that it raises concerns this call alone.
        """
        call = _Call(decide)
        self._waiting.append(call)
        async with self._turn:
            if not call.done:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                if call not in batch:  # more were before us than fit; they are first
                    batch[-1:], self._waiting = [call], [batch[-1], *self._waiting]
                try:
                    await self._commit(batch)
                finally:
                    self._waiting[:0] = [other for other in batch if not other.done and other is not call]
        if call.error is not None:
            raise call.error
        return call.answer, call.wrote  # type: ignore[return-value]

    async def _commit(self, batch: list[_Call[Any]]) -> None:
        """Raises nothing of ours: every call of the batch ends with its answer or its error."""
        try:
            await self._write(batch)
        except RhizomeError as exc:
            for call in batch:
                if not call.done:
                    call.error, call.done = exc, True

    async def _write(self, batch: list[_Call[Any]]) -> None:
        for attempt in range(self._attempts):
            before, version = await self._store.read()
            after = self._decide(batch, before)
            if after.generation > before.generation:
                try:
                    await self._store.write(after, version)
                except Conflict:
                    fields = {"event": "ledger.conflict", "attempt": attempt + 1}
                    log.debug("lost the race for the ledger", extra=fields)
                    await asyncio.sleep(random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**attempt)))
                    continue
            self._last = after
            for call in batch:
                call.done = True
            self._watch_pools(after)
            return
        raise Conflict(
            f"other writers changed the ledger {self._attempts} times in a row, always before us; "
            "try again later, or look for a process that writes to the store without pause"
        )

    def _decide(self, batch: list[_Call[Any]], ledger: Ledger) -> Ledger:
        for call in batch:
            before, call.error = ledger, None
            try:
                ledger, call.answer = call.decide(before)
            except RhizomeError as exc:
                call.error = exc
            call.wrote = ledger.generation > before.generation
        return ledger

    def _watch_pools(self, ledger: Ledger) -> None:
        for pool in self.policy.pools:
            share = ledger.used_in(pool) / pool.size
            level = max((alarm for alarm in ALARMS if share >= alarm), default=0.0)
            if level > self._alarmed.get(pool, 0.0):
                fields = {"event": "pool.filling", "pool": str(pool), "taken": round(share, 3)}
                log.warning("pool %s is %.0f%% taken: widen it before it is full", pool, share * 100, extra=fields)
            self._alarmed[pool] = level
