"""Many processes on one file, each killed at random moments and followed by another, until all have done their share; then the accounts are checked.

The journal (the log and its history) is the order in which everything happened. Replayed line by line, it may at no point give an address to
two owners; whatever a process was told has to be in it; and after garbage collection nobody holds anything without having been told.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipam.codec import decode, decode_owner
from ipam.gc import GarbageCollector
from ipam.ledger import Ledger
from ipam.model import Owner
from ipam.service import AddressBook
from ipam.stores.file import FileStore
from ipam.stores.log import HEADER_BYTES, history_path
from ipam.usage import contradictions
from lab.ipam.worker import POLICY, owner
from lab.processes import LabError, wait_until

#: More than a process can do before it is killed.
_ENDLESS = 10**9
_IDLE_MAX_S = 600.0


@dataclass(frozen=True, slots=True)
class Accounts:
    """What came out. `leaked` are owners that hold something and were never told, before and after garbage collection."""

    operations: int
    kills: int
    transactions: int
    duplicates: int
    lost: int
    leaked: int
    leaked_after_gc: int
    seconds: float


@dataclass
class _Told:
    """What the processes were told: who was granted what, who asked for release, who was released."""

    granted: dict[str, list[str]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)

    def read(self, path: Path) -> int:
        """How many operations were done."""
        done = 0
        for line in path.read_text().splitlines() if path.exists() else ():
            mark, name, *blocks = line.split()
            done += mark in "+-"
            if mark == "+":
                self.granted[name] = blocks
            else:
                (self.asked if mark == "?" else self.released).add(name)
        return done


def run(directory: Path, processes: int, operations: int, kills: int, seed: int = 1, at_once: int = 5) -> Accounts:
    """So many slots, in each of which one process follows another: `kills` of them are killed, the last one ends what is left to do.

    Raises LabError when a process ends by itself, or does nothing for ten minutes.
    """
    began, store = time.monotonic(), directory / "ledger"

    def slot(number: int) -> list[Path]:
        rng, done = random.Random(seed * 1000 + number), 0
        said = [directory / f"{number}-{life}.said" for life in range(kills + 1)]
        for life, says in enumerate(said):
            last, left = life == kills, max(0, operations - done)
            share = rng.uniform(0.5, 1.5) * left / (kills + 1 - life)
            argv = [sys.executable, "-m", "lab.ipam.worker", str(store), str(says), says.stem]
            argv += [str(left if last else _ENDLESS), str(rng.getrandbits(32)), str(at_once)]
            with subprocess.Popen(argv, cwd=Path(__file__).parents[2]) as process:
                try:
                    if not last:
                        _wait_for(process, says, share)
                        time.sleep(rng.uniform(0.0, 0.02))
                        process.kill()
                    code = process.wait()
                finally:
                    process.kill()
            if code != (0 if last else -signal.SIGKILL):
                raise LabError(f"worker {says.stem} ended with {code}")
            done += _Told().read(says)
        return said

    with ThreadPoolExecutor(processes) as pool:
        said = [path for paths in pool.map(slot, range(processes)) for path in paths]
    told = _Told()
    total = sum(told.read(path) for path in said)
    transactions, duplicates, seen = _replay(store)
    lost = sum(not set(blocks) <= seen.get(name, set()) for name, blocks in told.granted.items())
    leaked, after = asyncio.run(_leaks(store, told))
    return Accounts(total, processes * kills, transactions, duplicates, lost, leaked, after, time.monotonic() - began)


def _wait_for(process: subprocess.Popen[bytes], says: Path, operations: float) -> None:
    """Until it has done so many, at least one."""
    lines, moved = 0, time.monotonic()
    wait_until(says.exists, f"{says} being there", timeout_s=_IDLE_MAX_S)
    with says.open() as told:
        while lines < max(1.0, operations):
            if new := sum(line[0] in "+-" for line in told):
                lines, moved = lines + new, time.monotonic()
            elif process.poll() is not None or time.monotonic() - moved > _IDLE_MAX_S:
                raise LabError(f"worker {says.stem} does nothing, exit code {process.returncode}")
            time.sleep(0.02)


def _replay(store: Path) -> tuple[int, int, dict[str, set[str]]]:
    """How many transactions, how many of them gave what somebody had, and everything that each owner ever got."""
    holder: dict[str, Owner] = {}
    held: dict[Owner, list[str]] = {}
    seen: dict[str, set[str]] = {}
    count = duplicates = latest = 0
    for fields in _lines(store):
        if fields.get("snapshot") or fields["generation"] <= latest:
            continue
        latest, count = fields["generation"], count + 1
        put = [decode(entry) for entry in fields.get("put", ())]
        for who in [*map(decode_owner, fields.get("drop", ())), *(a.owner for a in put)]:
            for block in held.pop(who, ()):
                del holder[block]
        for allocation in put:
            held[allocation.owner] = texts = list(map(str, allocation.blocks))
            seen.setdefault(allocation.owner.name, set()).update(texts)
            for block in texts:
                duplicates += block in holder
                holder[block] = allocation.owner
    return count, duplicates, seen


def _lines(store: Path) -> Iterator[dict[str, Any]]:
    for path, skip in ((history_path(store), 0), (store, HEADER_BYTES)):
        if path.exists():
            for line in path.read_bytes()[skip:].splitlines():
                yield json.loads(line[9:])


async def _leaks(store: Path, told: _Told) -> tuple[int, int]:
    """Owners that hold something and were not told, before and after a garbage collection that knows who was."""
    book = AddressBook(FileStore(store), POLICY)
    alive = {owner(name) for name in told.granted.keys() - told.released}

    async def living() -> Set[Owner]:
        return alive

    def leaked(ledger: Ledger) -> int:
        if problems := contradictions(ledger):
            raise AssertionError(problems[0])
        return sum(not a.resting and a.owner not in alive for a in ledger)

    collector = GarbageCollector(book, living, lambda who: who.kind == "worker", grace_s=900.0)
    before = leaked(await book.ledger())
    await collector.run_once(time.time(), 0.0)
    await collector.run_once(time.time(), 900.0, force=True)
    after = await book.ledger()
    for who in alive:
        held = after.get(who)
        if who.name not in told.asked and (held is None or held.resting):
            raise AssertionError(f"{who} was told that it has an address, and has none")
    return before, leaked(after)
