"""A process that allocates and releases on a file until it has done its share or is killed: worker.py STORE SAYS NAME
OPERATIONS SEED AT_ONCE.

It writes what it is told into SAYS, one line each, before it goes on: "+ owner addresses" granted, "? owner" about to release, "- owner" released.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Coroutine
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import ipam.stores.file
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook

POLICY = Policy(
    (Pool.tunnel(IPv4Network("10.0.0.0/16")), Pool.tunnel(IPv6Network("fd00::/96"))),
    quarantine_s=0.2,  # so that addresses are used again and again
)


def owner(name: str) -> Owner:
    return Owner("worker", "ns", name, "uid")


async def work(store: Path, says: Path, name: str, operations: int, seed: int, at_once: int) -> None:
    """`at_once`: so many calls, at most, are made together and share a write if they can."""
    ipam.stores.file.SPARE_LINES = 60  # so that the log is written anew often
    ipam.stores.file.LOCK_TIMEOUT_S = 600.0
    book, rng = AddressBook(ipam.stores.file.FileStore(store), POLICY, attempts=10_000), random.Random(seed)
    out = os.open(says, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    mine: list[str] = []

    def say(line: str) -> None:
        os.write(out, f"{line}\n".encode())

    async def give(who: str) -> None:
        granted = await book.ensure(owner(who), time.time())
        say(f"+ {who} {' '.join(map(str, granted.blocks))}")
        mine.append(who)

    async def take(who: str) -> None:
        say(f"? {who}")
        await book.release(owner(who), time.time())
        say(f"- {who}")

    done = 0
    while done < operations:
        batch: list[Coroutine[Any, Any, None]] = []
        for _ in range(min(rng.randint(1, at_once), operations - done)):
            releasing = mine and (len(mine) > 10 or rng.random() < 0.45)
            batch.append(take(mine.pop(rng.randrange(len(mine)))) if releasing else give(f"{name}-{done + len(batch)}"))
        await asyncio.gather(*batch)
        done += len(batch)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])))
