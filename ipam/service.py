"""Addresses out of a store: read, decide, compare-and-swap, and again when somebody else was faster."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TypeVar

from agent.errors import Conflict
from ipam.allocate import allocate, release
from ipam.model import Allocation, Ledger, Owner, Policy
from ipam.stores import Store

log = logging.getLogger("rhizome.ipam")

T = TypeVar("T")

ATTEMPTS = 10
BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 1.0


class AddressBook:
    """What a role needs of the IPAM. Every answer rests on a complete read of the store; what `ensure` returns is committed.

    Calls in one process queue up behind each other; other processes on the same store are met by compare-and-swap.
    """

    def __init__(self, store: Store, policy: Policy, attempts: int = ATTEMPTS) -> None:
        self.policy = policy
        self._store = store
        self._attempts = attempts
        self._turn = asyncio.Lock()

    async def ensure(self, owner: Owner, now: float, expires: float | None = None) -> Allocation:
        """The owner's allocation, made when there was none (see `ipam.allocate.allocate`); times in seconds since the epoch.

        Raises PoolExhausted, StoreError, and Conflict after too many lost races. After a StoreError the allocation may have
        been made: ask again, the answer is the same.
        """
        allocation, wrote = await self._transact(lambda ledger: allocate(ledger, self.policy, owner, now, expires))
        if wrote and allocation.since == now:
            addresses = ", ".join(map(str, allocation.blocks))
            fields = {"event": "address.granted", "owner": str(owner), "generation": allocation.generation}
            log.info("%s has %s", owner, addresses, extra=fields)
        return allocation

    async def release(self, owner: Owner, now: float) -> None:
        """The owner's addresses rest from now on; nothing happens when it has none.

        Raises NotOwner, StoreError, and Conflict after too many lost races.
        """
        held, _ = await self._transact(lambda ledger: (release(ledger, self.policy, owner, now), ledger.get(owner)))
        if held is not None and not held.resting:
            log.info("%s released its addresses", owner, extra={"event": "address.released", "owner": str(owner)})

    async def _transact(self, decide: Callable[[Ledger], tuple[Ledger, T]]) -> tuple[T, bool]:
        async with self._turn:
            for attempt in range(self._attempts):
                ledger, version = await self._store.read()
                after, answer = decide(ledger)
                if after.generation == ledger.generation:
                    return answer, False
                try:
                    await self._store.write(after, version)
                except Conflict:
                    log.debug(
                        "lost the race for the ledger", extra={"event": "ledger.conflict", "attempt": attempt + 1}
                    )
                    await asyncio.sleep(random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**attempt)))
                else:
                    return answer, True
        raise Conflict(
            f"other writers changed the ledger {self._attempts} times in a row, always before us; "
            "try again later, or look for a process that writes to the store without pause"
        )
