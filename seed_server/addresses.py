"""The seed server's tunnel addresses: out of the IPAM, sticky per identity, one of each tunnel network."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.errors import Retry, StoreError
from agent.identity import Identity, Role
from agent.model import IPAddress
from agent.status import PoolHealth
from ipam.model import Allocation, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store
from ipam.stores.configmaps import in_configmaps
from ipam.stores.file import FileStore
from ipam.stores.memory import MemoryStore
from seed_server.settings import Settings

log = logging.getLogger("rhizome.seed")

#: How long the address of a node that does not come back stays its own.
KEPT_S = 30 * 86400.0


class Addresses:
    """Who has which, and how full the pools are."""

    def __init__(self, book: AddressBook) -> None:
        self._book = book
        self._given: dict[Identity, Allocation] = {}

    async def allocate(self, identity: Identity) -> tuple[IPAddress, ...]:
        """Committed when it returns: now, or by this process before, if the store is out of reach. Raises StoreError
        (PoolExhausted when none is free)."""
        owner = Owner(identity.role.value, identity.control_plane, identity.name, str(identity))
        now = time.time()
        try:
            given = await self._book.ensure(owner, now, expires=now + KEPT_S)
        except StoreError as exc:
            known = self._given.get(identity)
            if known is None or known.expires is None or known.expires <= now or not _out_of_reach(exc):
                raise
            log.debug("%s keeps its addresses: %s", identity.name, exc, extra={"event": "address.kept"})
            given = known
        self._given[identity] = given
        return self._book.policy.addresses(given)

    def sidecars(self, control_plane: str) -> dict[IPAddress, Identity]:
        """Which of its sidecars has which address, as far as the store was read."""
        return {
            address: Identity(control_plane, Role.SIDECAR, allocation.owner.name)
            for allocation in self._book.known
            if (allocation.owner.kind, allocation.owner.namespace) == (Role.SIDECAR.value, control_plane)
            and not allocation.resting
            for address in self._book.policy.addresses(allocation)
        }

    def pools(self) -> tuple[PoolHealth, ...]:
        """As they were when the store was read or written last. Looks at every allocation."""
        return tuple(
            PoolHealth(str(pool.network), usage.size, usage.used, usage.quarantined, usage.orphaned)
            for pool, usage in self._book.usage()
        )


def _out_of_reach(exc: StoreError) -> bool:
    """Whether what was committed still holds, and the store may be back soon."""
    return exc.retry is not Retry.NEVER


@asynccontextmanager
async def addresses(settings: Settings) -> AsyncIterator[Addresses]:
    """Reads the store once, so that one that cannot be used is told at start; one that may be back soon is waited for by whoever
    enrols. Raises StoreError, Unsupported."""
    async with _store(settings) as store:
        book = AddressBook(store, Policy(tuple(map(Pool.tunnel, settings.tunnel_networks))))
        try:
            await book.ledger()
        except StoreError as exc:
            if not _out_of_reach(exc):
                raise
            log.warning("no new client gets an address yet: %s", exc, extra={"event": "store.unavailable"})
        yield Addresses(book)


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    if settings.ipam_configmaps is not None:
        async with in_configmaps(*settings.ipam_configmaps) as store:
            yield store
    else:
        yield FileStore(settings.ipam_file) if settings.ipam_file is not None else MemoryStore()
