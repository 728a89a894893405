"""Where a ledger is kept. A store is one port of two methods; safety between writers rests on compare-and-swap alone."""

from __future__ import annotations

from typing import NewType, Protocol

from agent.errors import Conflict
from ipam.ledger import Ledger

#: Names one state of a store. Only ever compared for equality, and only by the store that made it.
Version = NewType("Version", str)


class Store(Protocol):
    """A ledger that several processes may share."""

    async def read(self) -> tuple[Ledger, Version]:
        """The whole ledger, checked, and the version it is. Raises StoreError when it cannot be had complete."""

    async def write(self, ledger: Ledger, version: Version) -> None:
        """Make `ledger` the store's, durably, if the store still is at `version`.

        Raises Conflict when it is not. Raises StoreError when the write failed; then it may have happened all the same, and
        the next `read` tells. In either case every owner has what it had or what `ledger` gives it, never a part of it;
        a store of one piece has written nothing when it raises Conflict.
        """

    async def changed(self, version: Version) -> None:
        """Return when the store is not at `version` any more, perhaps a moment too early or late. Raises StoreError."""


def require_newer(ledger: Ledger, stored: Ledger) -> None:
    """Raises Conflict when a ledger did not come from the stored one by at least one change."""
    if ledger.generation <= stored.generation:
        raise Conflict(
            f"a ledger of generation {ledger.generation} cannot follow {stored.generation}; read the store and decide again"
        )
