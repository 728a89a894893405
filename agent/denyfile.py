"""The deny list as a file: read, changed in one step, and watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Never

from agent.denylist import DenyList, parse
from agent.errors import ConfigError
from agent.files import edit, stamp

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


def change(path: Path, edited: Callable[[str], str]) -> bool:
    """Replace the file's text by `edited` of it, so that a reader sees the one or the other; made when it is missing.

    False when there is nothing to change. Raises HostError, ConfigError for a text that is no deny list.
    """

    def checked(text: str) -> str:
        after = edited(text)
        parse(after)
        return after

    try:
        return edit(path, checked, 0o644)
    except ValueError as exc:
        raise ConfigError(f"the deny list {path}: {exc}") from exc


async def watch(path: Path, on_change: Callable[[DenyList], None]) -> Never:
    """Tell of each change. A file that is gone, or is no deny list, changes nothing: who was denied stays denied."""
    before = stamp(path)
    while True:
        await asyncio.sleep(POLL_S)
        if (seen := stamp(path)) == before:
            continue
        before = seen
        try:
            denied = read(path)
        except ConfigError as exc:
            log.error("the last good deny list stays: %s", exc, extra={"event": "denylist.bad"})
            continue
        log.info("the deny list was read again: %d entries", len(denied), extra={"event": "denylist.read"})
        on_change(denied)
