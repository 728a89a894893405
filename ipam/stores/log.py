"""The format of a ledger on disk: a header line, then one line for each transaction. Bytes in, values out; no file is touched.

    {"format": "rhizome-ipam-log", "version": 1, "log": "5c0f...", "rewrites": 3, "committed": 48211}      (padded to 256 bytes)
    8c736521 {"generation": 17, "at": 1795240000.0, "put": [{"owner": {...}, "addresses": ["192.168.128.8"], ...}], "drop": [{...}]}

A line's first word is the CRC-32 of the rest. `committed` is a length in bytes: so much of the file has to be there and valid.
What is broken behind it is a write that a crash interrupted. Generations never go down from line to line.
"""

from __future__ import annotations

import gc
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipam.codec import decode, decode_owner, encode, encode_owner
from ipam.ledger import Ledger
from ipam.model import Allocation, InconsistentLedger, Owner

FORMAT = "rhizome-ipam-log"
FORMAT_VERSION = 1
HEADER_BYTES = 256

#: Without what json.loads does before: of 65,000 lines, that would be a tenth of the time.
_decode = json.JSONDecoder().decode


class BadLog(ValueError):
    """The bytes are not a complete ledger of a format that this program knows; the message ends "it ..."."""


@dataclass(frozen=True, slots=True)
class Header:
    """`log` names this ledger for life; `rewrites` counts how often its file was written anew."""

    log: str
    rewrites: int
    committed: int

    def line(self) -> bytes:
        fields = {"format": FORMAT, "version": FORMAT_VERSION, "log": self.log, "rewrites": self.rewrites}
        return json.dumps({**fields, "committed": self.committed}).ljust(HEADER_BYTES - 1).encode() + b"\n"


def parse_header(line: bytes) -> Header:
    """Raises BadLog for foreign, newer and damaged files."""
    if not line:
        raise BadLog("it is empty")
    try:
        fields = json.loads(line)
        kind, version = fields["format"], fields["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BadLog("its first line is not the header of an address ledger") from exc
    if kind != FORMAT or not isinstance(version, int):
        raise BadLog(f"its format is {kind!r}, not {FORMAT!r}")
    if version > FORMAT_VERSION:
        raise BadLog(f"its format version is {version} and this program knows {FORMAT_VERSION}; upgrade this program")
    try:
        header = Header(str(fields["log"]), int(fields["rewrites"]), int(fields["committed"]))
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise BadLog(f"its header is damaged ({exc!r})") from exc
    if len(line) != HEADER_BYTES or header.committed < HEADER_BYTES:
        raise BadLog("its header is damaged")
    return header


def history_path(path: Path) -> Path:
    """Where the transactions go that a log loses when it is written anew: the journal, only ever appended to."""
    return path.with_name(path.name + ".history")


def transaction(
    generation: int, put: Iterable[Allocation] = (), drop: Iterable[Owner] = (), at: float | None = None
) -> bytes:
    """One line. `at` is when it was written, for people; None in a snapshot."""
    fields: dict[str, Any] = {"generation": generation}
    fields |= {"at": round(at, 3)} if at is not None else {"snapshot": True}
    if entries := [encode(allocation) for allocation in put]:
        fields["put"] = entries
    if owners := [encode_owner(owner) for owner in drop]:
        fields["drop"] = owners
    text = json.dumps(fields, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def snapshot(ledger: Ledger) -> Iterator[bytes]:
    """The shortest lines that make this ledger out of an empty one."""
    yield transaction(ledger.generation)
    for allocation in ledger:
        yield transaction(ledger.generation, (allocation,))


@dataclass(frozen=True, slots=True)
class Replayed:
    """`size` is how many bytes were whole transactions, `lines` how many those are."""

    ledger: Ledger
    size: int
    lines: int


def replay(ledger: Ledger, data: bytes, committed: int) -> Replayed:
    """`ledger` after the transactions in `data`, up to the first broken line. The first `committed` bytes of `data` have to be whole and valid.

    Raises BadLog.
    """
    texts: list[bytes] = []
    size = 0
    for line in data.splitlines(keepends=True):
        if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(line[9:-1]):
            break
        texts.append(line[9:])
        size += len(line)
    if size < committed:
        raise BadLog(f"it is truncated or damaged {committed - size} bytes before its end")
    try:
        return Replayed(_applied(ledger, texts), size, len(texts))
    except InconsistentLedger as exc:
        raise BadLog(f"it contradicts itself: {exc}") from exc


def _applied(ledger: Ledger, texts: list[bytes]) -> Ledger:
    generation = ledger.generation
    if len(texts) <= len(ledger):
        for text in texts:
            generation, put, drop = _transaction(text, generation)
            ledger = ledger.apply(put, drop, generation)
        return ledger
    # So many that all the versions between would cost more than to build the last one anew.
    owners = {allocation.owner: allocation for allocation in ledger}
    with _nothing_collected():
        for text in texts:
            generation, put, drop = _transaction(text, generation)
            for owner in drop:
                owners.pop(owner, None)
            for allocation in put:
                owners[allocation.owner] = allocation
        return Ledger.of(owners.values(), generation)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What is built here stays; looking for garbage in it again and again would take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _transaction(text: bytes, before: int) -> tuple[int, list[Allocation], list[Owner]]:
    """Generation, put and drop. Raises BadLog, also when the generation is lower than `before`."""
    try:
        fields = _decode(text.decode())
        generation = int(fields["generation"])
        put = [decode(entry) for entry in fields.get("put", ())]
        drop = [decode_owner(entry) for entry in fields.get("drop", ())]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise BadLog(f"a line of it is no transaction: {exc!r}") from exc
    if generation < before:
        raise BadLog(f"generation {generation} comes after {before}")
    return generation, put, drop
