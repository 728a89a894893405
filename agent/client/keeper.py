"""Keeps what the server gives in exchange for a one-time token, and each newer one, in the file that the token was in.

A credential replaces what its stream was opened with, and nothing else: where somebody has put another token into the file
meanwhile, that one stays and is shown with the next stream.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from agent.enrolment import digest_of
from agent.files import write_atomically
from agent.messages import Credential

log = logging.getLogger("rhizome.client")


class Keeper:
    """`trouble` is why the newest credential is not in the file, empty when it is."""

    def __init__(self, path: Path) -> None:
        self.trouble = ""
        self._path = path
        self._turn = asyncio.Lock()
        self._unkept: Credential | None = None

    async def keep(self, credential: Credential) -> None:
        """Does nothing for one that is in the file already. What fails is said by `trouble` and tried again by `retry`."""
        async with self._turn:
            try:
                kept = await asyncio.to_thread(self._replace, credential)
            except OSError as exc:
                self._unkept = credential
                self.trouble = f"our newest credential cannot be kept in {self._path}: {exc.strerror}"
                log.error("%s", self.trouble, extra={"event": "credential.unkept"})
                return
            self._unkept, self.trouble = None, ""
            if kept:
                log.info("a newer credential is in %s", self._path, extra={"event": "credential.kept"})

    async def retry(self) -> None:
        """Once more, if there is something to keep."""
        if self._unkept is not None:
            await self.keep(self._unkept)

    def _replace(self, credential: Credential) -> bool:
        if self._path.is_symlink():
            raise OSError(0, "it is a symbolic link")
        there = self._path.read_bytes().decode("ascii", "replace").strip()
        if digest_of(there) != credential.replaces:
            return False
        write_atomically(self._path, f"{credential.token}\n".encode(), 0o600)
        return True
