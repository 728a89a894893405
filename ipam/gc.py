"""The shell of the garbage collector: reads who is alive, twice, and releases what ipam.collect calls ripe."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass

from ipam.allocate import sweep
from ipam.collect import GRACE_S, Candidates, mark, ripe, too_many
from ipam.ledger import Ledger
from ipam.model import Allocation, Owner
from ipam.service import AddressBook

log = logging.getLogger("rhizome.ipam")

#: Reads everybody who is alive, complete and from the authority itself (a quorum read, no cache). Raises when it cannot.
Living = Callable[[], Awaitable[Set[Owner]]]


@dataclass(frozen=True, slots=True)
class Collected:
    """What one pass found. `withheld`: why nothing was released although it was time; in words, empty when nothing was."""

    candidates: int
    released: tuple[Allocation, ...] = ()
    withheld: tuple[str, ...] = ()
    ripe: tuple[Allocation, ...] = ()


class GarbageCollector:
    """Forgets the candidates with the process: a restart makes it slower, never hastier."""

    def __init__(
        self, book: AddressBook, living: Living, judged: Callable[[Owner], bool], grace_s: float = GRACE_S
    ) -> None:
        self._book = book
        self._living = living
        self._judged = judged
        self._grace_s = grace_s
        self._candidates: Candidates = {}

    async def run_once(self, now: float, monotonic: float, *, force: bool = False) -> Collected:
        """One pass. `force`: release also what `too_many` withholds. Raises what `living` raises, and StoreError; nothing is
        released then."""
        ledger = await self._book.ledger()
        self._candidates = mark(self._candidates, ledger, self._judged, await self._living(), monotonic)
        doomed = ripe(self._candidates, ledger, monotonic, self._grace_s)
        if doomed:
            alive = await self._living()  # once more, just before
            doomed = tuple(allocation for allocation in doomed if allocation.owner not in alive)
        if not doomed:
            return Collected(len(self._candidates))
        withheld = () if force else too_many(doomed, self._book.policy.pools)
        if withheld:
            fields = {"event": "gc.withheld", "count": len(doomed)}
            log.warning("nothing is released: it would be %s at once", "; ".join(withheld), extra=fields)
            return Collected(len(self._candidates), (), withheld, doomed)

        def decide(ledger: Ledger) -> tuple[Ledger, tuple[Allocation, ...]]:
            after = sweep(ledger, self._book.policy, doomed, now)
            return after, tuple(a for a in doomed if (left := after.get(a.owner)) is None or left.resting)

        released, _ = await self._book.transact(decide)
        for allocation in released:
            fields_of = {"event": "gc.released", "owner": str(allocation.owner)}
            log.info("%s is gone: its addresses rest", allocation.owner, extra=fields_of)
        return Collected(len(self._candidates), released, (), doomed)
