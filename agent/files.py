"""Small files that are replaced as a whole: a reader sees the old text or the new one, also after a crash.

Light: the carrier process uses it too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.errors import HostError

Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Another one when the file is another one; None while there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Replace a file whole, durably, and never readable by more than `mode` on the way. Raises OSError."""
    temporary = written_beside(path, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def written_beside(path: Path, data: bytes, mode: int) -> Path:
    """A new file with these bytes, on the disk, in the directory of `path`, for the caller to move. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def sync_directory(directory: Path) -> None:
    """What was made, moved and removed in it stays so. Raises OSError."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def edit(path: Path, change: Callable[[str], str], mode: int) -> bool:
    """Replace a file's text by `change` of it, under a lock; the file is made with `mode` when it is missing, and keeps its mode
    otherwise. False when there is nothing to change. Raises HostError, and what `change` raises."""
    path = path.resolve()  # a symlink stays one
    try:
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before, kept = None, mode
            with suppress(FileNotFoundError):
                before = path.read_text(encoding="utf-8")
                kept = path.stat().st_mode & 0o777
            after = change(before or "")
            if after == before:
                return False
            write_atomically(path, after.encode(), kept)
            return True
    except OSError as exc:
        raise HostError(f"cannot change {path}: {exc.strerror}", exc.errno or 0) from exc
