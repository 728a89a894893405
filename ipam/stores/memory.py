"""The store of a test, or of a server that may forget: a ledger in this process."""

from __future__ import annotations

import asyncio

from agent.errors import Conflict
from ipam.ledger import Ledger
from ipam.stores import Version, require_newer


class MemoryStore:
    """Gone with the process."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._writes = 0
        self._changed = asyncio.Event()

    async def read(self) -> tuple[Ledger, Version]:
        return self._ledger, Version(str(self._writes))

    async def write(self, ledger: Ledger, version: Version) -> None:
        if version != str(self._writes):
            raise Conflict("the ledger in memory was changed since it was read; read it again and decide again")
        require_newer(ledger, self._ledger)
        self._ledger = ledger
        self._writes += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, version: Version) -> None:
        if version == str(self._writes):
            await self._changed.wait()
