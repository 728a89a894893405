"""Remembers the sidecars that configured their pods and left, so that a server that starts anew still knows their keys.

One small file, written anew and exchanged as a whole (rename(2)) before a sidecar hears that it may leave. There is no secret in
it: names, public keys, addresses, and when each certificate ends. Preshared keys are derived (seed_server.direct).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.errors import StoreError
from agent.files import write_atomically
from agent.identity import Identity
from agent.model import IPAddress
from seed_server.absent import decode, encode
from seed_server.registry import Client


class OnceFile:
    """The file `path`. The first `save` with somebody in it makes it, mode 0600; its directory has to be there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = asyncio.Lock()
        self._saved = encode(())

    def load(self, known: Mapping[IPAddress, Identity]) -> tuple[Client, ...]:
        """Who left before this server started and still holds the addresses that it had (`known`, as the IPAM says). Raises
        StoreError for a file that cannot be read."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise StoreError(f"once_file: {self._path}: {exc.strerror}") from exc
        try:
            found = decode(text, time.time(), time.monotonic())
        except (ValueError, TypeError, KeyError) as exc:
            raise StoreError(
                f"once_file: {self._path} is not what this version writes: restore it, or remove it and start the pods anew "
                "whose sidecars ran with --once"
            ) from exc
        self._saved = text
        return tuple(c for c in found if all(known.get(address) == c.identity for address in c.addresses))

    async def save(self, clients: Iterable[Client]) -> None:
        """Remember exactly those of `clients` that left. Does nothing when they are remembered. Raises StoreError."""
        async with self._turn:
            text = encode(clients)
            if text != self._saved:
                await asyncio.to_thread(self._write, text)
                self._saved = text

    def _write(self, text: str) -> None:
        try:
            write_atomically(self._path, text.encode(), 0o600)
        except OSError as exc:
            raise StoreError(f"once_file: cannot write {self._path}: {exc.strerror}") from exc


async def remember(file: OnceFile | None, clients: Iterable[Client]) -> None:
    """As `save`, where there is a file. Raises StoreError."""
    if file is not None:
        await file.save(clients)
