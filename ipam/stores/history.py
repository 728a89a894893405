"""The past of an address, out of the journal that a file store leaves: its log, and the history that older logs went to."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import StoreError
from agent.model import IPAddress
from ipam.codec import decode, decode_owner
from ipam.model import Owner
from ipam.stores.log import HEADER_BYTES, history_path


@dataclass(frozen=True, slots=True)
class Event:
    """`at` is None for what was written before times were kept."""

    at: float | None
    generation: int
    what: str
    owner: Owner


def events(path: Path, address: IPAddress) -> list[Event]:
    """What happened to an address, oldest first. Lines that are damaged are passed over: this is for reading, not for granting.

    Raises StoreError.
    """
    try:
        lines = [*_lines(history_path(path), 0), *_lines(path, HEADER_BYTES)]
    except OSError as exc:
        raise StoreError(f"cannot read the journal of {path}: {exc.strerror}") from exc
    holders: dict[Owner, bool] = {}
    found: list[Event] = []
    latest = 0
    for fields in lines:
        generation = int(fields["generation"])
        if generation <= latest or fields.get("snapshot"):
            continue  # a crash while a log was written anew can leave lines in both
        latest = generation
        found += _told(fields, generation, address, holders)
    return found


def _told(fields: dict[str, Any], generation: int, address: IPAddress, holders: dict[Owner, bool]) -> Iterator[Event]:
    at = fields.get("at")
    for entry in fields.get("drop", ()):
        if holders.pop(owner := decode_owner(entry), None) is not None:
            yield Event(at, generation, "free", owner)
    for entry in fields.get("put", ()):
        allocation = decode(entry)
        if any(block.version == address.version and address in block.network for block in allocation.blocks):
            before = holders.get(allocation.owner)
            if before != allocation.resting:
                yield Event(at, generation, "given back" if allocation.resting else "given", allocation.owner)
            holders[allocation.owner] = allocation.resting


def _lines(path: Path, skip: int) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(skip)
        for line in file:
            if line[-1:] == b"\n" and line[:9] == b"%08x " % zlib.crc32(line[9:-1]):
                yield json.loads(line[9:])
