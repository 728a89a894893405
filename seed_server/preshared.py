"""New preshared keys for clients that are in. Pure, but for `Rotation`, which waits for the time and for a command.

A session does not end when the preshared key of its peer changes: the new one counts from the next handshake on, at most two
minutes later. So the device has it first, then the client is told; a handshake in between fails, is tried again after five
seconds, and the session lives for a minute longer than that (WireGuard whitepaper, sections 5.4.2 and 6.2).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from agent.model import PresharedKey
from seed_server.registry import Registry

log = logging.getLogger("rhizome.seed")

LOOK_S = 1.0
#: Clients that get a new key in one second: all have come at once after a restart, and would be due at once ever after.
AT_ONCE = 64


def due(registry: Registry, until: float) -> list[str]:
    """Who has a stream, and a key that was made before this time (monotonic); the oldest keys first.

    It is the key of the stream's device. That of a sidecar's direct device is derived and stays (ADR 12).
    """
    found = [
        (client.preshared_since, key)
        for key, client in registry.clients.items()
        if client.stream is not None and client.preshared_since < until
    ]
    return [key for _, key in sorted(found)]


def renewed(registry: Registry, keys: Mapping[str, PresharedKey], now: float) -> Registry:
    """The registry with new preshared keys for these clients."""
    clients = dict(registry.clients)
    for name, key in keys.items():
        clients[name] = replace(clients[name], preshared_key=key, preshared_since=now)
    return replace(registry, clients=MappingProxyType(clients))


class Rotation:
    """`renew` is called with those who are due: by age, or when the file `asked` appears, which is how a command says so."""

    def __init__(
        self,
        registry: Callable[[], Registry],
        renew: Callable[[Sequence[str]], Awaitable[None]],
        *,
        lifetime_s: float,
        asked: Path,
    ) -> None:
        self._registry = registry
        self._renew = renew
        self._lifetime_s = lifetime_s
        self._asked = asked
        self._until = float("-inf")  # keys made before then are too old, whatever their age

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look(time.monotonic())

    async def look(self, now: float) -> None:
        if self._asked.exists():
            with suppress(OSError):
                self._asked.unlink()
            self._until = now
        found = due(self._registry(), max(self._until, now - self._lifetime_s))[:AT_ONCE]
        if found:
            await self._renew(found)
            log.info(
                "%d clients have new preshared keys",
                len(found),
                extra={"event": "preshared.renewed", "count": len(found)},
            )
