"""The deny list as a file: read, changed in one step, and watched."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Never

from agent.denylist import DenyList, parse
from agent.errors import ConfigError, HostError

log = logging.getLogger("rhizome.denylist")

#: A revocation takes effect within five seconds, and this is the longest part of it.
POLL_S = 1.0


def read(path: Path) -> DenyList:
    """Raises ConfigError."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"the deny list {path}: {reason}") from exc


def change(path: Path, edit: Callable[[str], str]) -> bool:
    """Replace the file's text by `edit` of it, so that a reader sees the one or the other; made when it is missing.

    False when there is nothing to change. Raises HostError, ConfigError for a text that is no deny list.
    """
    path = path.resolve()  # a symlink stays one
    try:
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = path.read_text(encoding="utf-8") if path.exists() else None
            after = edit(before or "")
            parse(after)
            if after == before:
                return False
            _replace(path, after)
            return True
    except OSError as exc:
        raise HostError(f"cannot change {path}: {exc.strerror}", exc.errno or 0) from exc
    except ValueError as exc:
        raise ConfigError(f"the deny list {path}: {exc}") from exc


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(handle, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def watch(path: Path, on_change: Callable[[DenyList], None]) -> Never:
    """Tell of each change. A file that is gone, or is no deny list, changes nothing: who was denied stays denied."""
    before = _stamp(path)
    while True:
        await asyncio.sleep(POLL_S)
        stamp = _stamp(path)
        if stamp == before:
            continue
        before = stamp
        try:
            denied = read(path)
        except ConfigError as exc:
            log.error("the last good deny list stays: %s", exc, extra={"event": "denylist.bad"})
            continue
        log.info("the deny list was read again: %d entries", len(denied), extra={"event": "denylist.read"})
        on_change(denied)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
