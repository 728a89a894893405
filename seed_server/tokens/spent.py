"""Which one-time tokens were used, and by whom: a directory with a file for each, made once and never changed.

A file that is there cannot be made again (link(2)), so of two machines with one token, of two processes and of two servers that
share the directory one is the first, also after a restart. There is no secret in it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import ConfigError, StoreError
from agent.files import sync_directory, written_beside

#: For so long after a token's own end it is remembered who used it, for the words of a refusal.
KEPT_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A token was used. `holder` is the SHA-256 of what its machine had put behind it, `at` the time of day, `expires_at` the
    token's own end."""

    identity: str
    holder: str
    at: float
    expires_at: float


class SpentTokens:
    """The directory `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> None:
        """Make the directory, and see that it can be written to. Raises ConfigError: without a durable place no token could be
        kept from being used twice."""
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            probe = written_beside(self._path / "probe", b"", 0o600)
            twin = probe.with_name(f"{probe.name}.twin")
            os.link(probe, twin)
            twin.unlink()
            probe.unlink()
            sync_directory(self._path)
        except OSError as exc:
            raise ConfigError(
                f"enrolment_dir: cannot write to {self._path}: {exc.strerror}: one-time tokens need a place that outlives this process"
            ) from exc

    async def get(self, digest: str) -> Mark | None:
        """Raises StoreError for a mark that cannot be read: then nobody knows, and nobody is let in."""
        return await asyncio.to_thread(self._get, digest)

    async def put(self, digest: str, mark: Mark) -> Mark:
        """The mark that stands from now on: this one, or another's that was first. On the disk when it returns. Raises StoreError."""
        return await asyncio.to_thread(self._put, digest, mark)

    async def forget(self, wall: float, listed: Collection[str]) -> None:
        """Remove marks of tokens that ended long ago and are not `listed` any more: those could be used again if the clock is
        stepped back. What cannot be removed stays."""
        await asyncio.to_thread(self._forget, wall, listed)

    def _get(self, digest: str) -> Mark | None:
        try:
            return Mark(**json.loads((self._path / digest).read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as exc:
            raise StoreError(f"enrolment_dir: {self._path / digest}: {exc}") from exc

    def _put(self, digest: str, mark: Mark) -> Mark:
        place = self._path / digest
        try:
            fresh = written_beside(place, json.dumps(asdict(mark)).encode(), 0o600)
            try:
                os.link(fresh, place)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
            sync_directory(self._path)
        except OSError as exc:
            raise StoreError(f"enrolment_dir: cannot write to {self._path}: {exc.strerror}") from exc
        stands = self._get(digest)
        if stands is None:
            raise StoreError(f"enrolment_dir: {place}: was removed by somebody else")
        return stands

    def _forget(self, wall: float, listed: Collection[str]) -> None:
        for place in self._path.glob("[0-9a-f]" * 64):
            try:
                mark = self._get(place.name)
                if mark is not None and mark.expires_at + KEPT_S < wall and place.name not in listed:
                    place.unlink()
            except (StoreError, OSError):
                continue
