"""One file on a local disk, shared by any number of processes of one machine: a log of transactions (ipam.stores.log).

A write appends one line and syncs it; when the log has many more lines than live entries, a shorter one is written beside it
and renamed over it, after its transactions were added to `<file>.history`. Readers take no lock and read only what is new to them; writers lock `<file>.lock`.

What makes it safe:

- A transaction counts once its whole line is there, and it is synced before anybody hears of it.
- Only then the header's `committed` length grows. A file that is truncated or damaged before that length is an error, never
  a shorter ledger; a broken line behind it was interrupted by a crash, and the next writer cuts it off.
- Who renames has synced the file before, and syncs the directory after.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Conflict, Retry, StoreError
from ipam.ledger import Ledger
from ipam.stores import Version, require_newer
from ipam.stores.log import HEADER_BYTES, BadLog, Header, history_path, parse_header, replay, snapshot, transaction

LOCK_TIMEOUT_S = 10.0
POLL_S = 0.25
#: The file is written anew when it has more lines than this and more than twice the live entries.
SPARE_LINES = 1000

_ABSENT = Version("absent")

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; mount it writable or name another file",
    errno.EACCES: "permission denied; let this user read and write the file and its directory",
    errno.EPERM: "not permitted; let this user read and write the file and its directory",
    errno.EIO: "the disk has an I/O error; move the file to a healthy one",
    errno.ENOENT: "its directory is missing; make it or name another file",
    errno.EISDIR: "that is a directory; name a file in it",
}


class UnreadableLedger(StoreError):
    """The file is not the complete ledger it should be. It was left as it is and nothing is granted from it."""

    retry = Retry.NEVER


@dataclass(frozen=True, slots=True)
class _State:
    """The file as far as it was read: `end` is the offset behind its last whole line, `lines` how many there are."""

    header: Header
    end: int
    lines: int
    ledger: Ledger

    @property
    def version(self) -> Version:
        return Version(f"{self.header.log}:{self.ledger.generation}")


class FileStore:
    """The ledger in the file `path`. The first write makes it, mode 0600; its directory has to be there.

    `<path>.lock` stays beside it, `<path>.tmp` while it is written anew. `<path>.history` is the journal; it may be moved
    away at any time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._state: _State | None = None
        self._sync_failed = False
        self._guard = threading.Lock()

    async def read(self) -> tuple[Ledger, Version]:
        return await asyncio.to_thread(self._read)

    async def write(self, ledger: Ledger, version: Version) -> None:
        await asyncio.to_thread(self._write, ledger, version)

    def _read(self) -> tuple[Ledger, Version]:
        state = self._look()
        return (state.ledger, state.version) if state is not None else (Ledger(), _ABSENT)

    def _write(self, ledger: Ledger, version: Version) -> None:
        with self._guard, self._errors("write"), self._lock():
            state = self._refresh()
            if version != (state.version if state is not None else _ABSENT):
                raise Conflict(f"{self._path} was changed since it was read; read it again and decide again")
            require_newer(ledger, state.ledger if state is not None else Ledger())
            before = state.ledger if state is not None else Ledger()
            put, gone = ledger.owners.changes_since(before.owners)
            line = transaction(ledger.generation, put.values(), gone, time.time())
            if state is None:
                self._rewrite(line, ledger, _State(Header(uuid.uuid4().hex, -1, 0), 0, 0, before))
            elif self._sync_failed or state.lines > max(SPARE_LINES, 2 * len(ledger)):
                self._rewrite(line, ledger, state)
            else:
                self._append(line, ledger, state)

    async def changed(self, version: Version) -> None:
        while True:
            state = await asyncio.to_thread(self._look)
            if version != (state.version if state is not None else _ABSENT):
                return
            await asyncio.sleep(POLL_S)

    def _look(self) -> _State | None:
        with self._guard, self._errors("read"):
            return self._refresh()

    def _refresh(self) -> _State | None:
        """The file as it is now; None when there is none. Reads only what came since the last call."""
        known = self._state
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if known is not None:
                raise UnreadableLedger(
                    f"{self._path} is gone, and with it what is known of the addresses in use; nothing is granted. "
                    "Put it back, or restart to begin a new ledger"
                ) from None
            if not self._path.parent.is_dir():
                raise StoreError(f"{self._path.parent} is no directory; make it or name another file") from None
            return None
        try:
            header = parse_header(os.pread(fd, HEADER_BYTES, 0))
            if known is None or (header.log, header.rewrites) != (known.header.log, known.header.rewrites):
                known = _State(header, HEADER_BYTES, 0, Ledger())
            size = os.fstat(fd).st_size
            if size < known.end:
                raise BadLog(f"it is truncated, {known.end - size} bytes are missing")
            data = os.pread(fd, size - known.end, known.end)
            new = replay(known.ledger, data, header.committed - known.end)
        except BadLog as exc:
            raise UnreadableLedger(
                f"{self._path} is not a ledger that can be used: {exc}. It was left as it is and nothing is granted; "
                "restore it from a copy, or move it away to begin a new ledger"
            ) from exc
        finally:
            os.close(fd)
        self._refuse_older(header, new.ledger)
        self._state = _State(header, known.end + new.size, known.lines + new.lines, new.ledger)
        return self._state

    def _refuse_older(self, header: Header, ledger: Ledger) -> None:
        if (known := self._state) is None:
            return
        if header.log != known.header.log or ledger.generation < known.ledger.generation:
            raise UnreadableLedger(
                f"{self._path} was replaced by another or an older ledger (generation {ledger.generation}, "
                f"known is {known.ledger.generation}); nothing is granted. Put the newer one back, or restart to accept this one"
            )

    def _append(self, line: bytes, ledger: Ledger, state: _State) -> None:
        header = Header(state.header.log, state.header.rewrites, state.end + len(line))
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size > state.end:
                os.ftruncate(fd, state.end)  # what an interrupted write left
            try:
                _write_all(fd, line, state.end)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(fd, state.end)
                raise
            try:
                os.fdatasync(fd)
            except OSError:
                # The kernel may have dropped the pages and will not report it again: only a new file is trustworthy now.
                self._sync_failed = True
                raise
            os.pwrite(fd, header.line(), 0)
        finally:
            os.close(fd)
        self._state = _State(header, header.committed, state.lines + 1, ledger)

    def _rewrite(self, line: bytes, ledger: Ledger, state: _State) -> None:
        """The known ledger as a snapshot, and behind it the line that makes it the new one."""
        temporary = self._path.with_name(self._path.name + ".tmp")
        lines = [*snapshot(state.ledger), line]
        header = Header(state.header.log, state.header.rewrites + 1, HEADER_BYTES + sum(map(len, lines)))
        if state.end:
            self._keep_history(state.end)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                _write_all(fd, header.line() + b"".join(lines), 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        self._sync_directory()
        self._state = _State(header, header.committed, len(lines), ledger)
        self._sync_failed = False

    def _keep_history(self, end: int) -> None:
        """Add what the log holds to the journal. After a crash it is added again; generations tell the copies."""
        data = self._path.read_bytes()[HEADER_BYTES:end]
        fd = os.open(history_path(self._path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            _write_all(fd, b"".join(line for line in data.splitlines(True) if b'"snapshot"' not in line), size)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _sync_directory(self) -> None:
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """The only writer of the machine. It makes writers wait instead of collide; safety comes from the versions."""
        fd = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as exc:
                    if time.monotonic() > deadline:
                        raise StoreError(
                            f"another process has held {self._path}.lock for {LOCK_TIMEOUT_S:.0f} s; look for one that is stopped"
                        ) from exc
                    time.sleep(random.uniform(0.0005, 0.005))
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            why = _ADVICE.get(exc.errno or 0, exc.strerror or str(exc))
            raise StoreError(
                f"cannot {verb} the address ledger {self._path}: {why}. Addresses given out stay valid"
            ) from exc


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
