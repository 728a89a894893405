"""`rhizome-ipam list`: who has what, and how full the pools are."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict

from agent.cli.table import table
from agent.exits import Exit
from ipam.cli import common
from ipam.codec import encode
from ipam.ledger import Ledger
from ipam.model import Pool
from ipam.usage import orphans, usage


def arguments(parser: argparse.ArgumentParser) -> None:
    common.store_arguments(parser)
    common.pool_arguments(parser)
    parser.add_argument("--kind", help="only owners of this kind")
    parser.add_argument("--namespace", help="only owners of this namespace")
    parser.add_argument("--name", help="only owners of this name")
    common.output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    file = common.pools(arguments)
    common.must_exist(arguments.store)
    ledger = asyncio.run(read(arguments.store))
    wanted = {key: value for key in ("kind", "namespace", "name") if (value := getattr(arguments, key)) is not None}
    found = sorted(
        (a for a in ledger if all(getattr(a.owner, key) == value for key, value in wanted.items())),
        key=lambda a: a.blocks,
    )
    lines = table(common.HEADS, map(common.row, found)) or ["nothing is allocated"]
    lines += pool_table(ledger, file.pools)
    value = {
        "generation": ledger.generation,
        "allocations": [encode(a) for a in found],
        "pools": [
            {"name": pool.name, "network": str(pool.network), "length": pool.length, **asdict(seen), "free": seen.free}
            for pool in file.pools
            for seen in (usage(ledger, pool),)
        ],
        "orphans": [str(block) for block, _ in orphans(ledger, file.pools)],
    }
    common.show(arguments, value, lines)
    return Exit.OK


def pool_table(ledger: Ledger, pools: tuple[Pool, ...]) -> list[str]:
    rows = []
    for pool in pools:
        seen = usage(ledger, pool)
        counts = (seen.size, seen.used, seen.quarantined, seen.orphaned, seen.free)
        rows.append((str(pool), *map(str, counts), f"{seen.taken:.1%}"))
    return table(("POOL", "SIZE", "USED", "QUARANTINED", "ORPHANED", "FREE", "TAKEN"), rows)


async def read(text: str) -> Ledger:
    """The whole ledger. Raises StoreError."""
    async with common.opened(text) as store:
        return (await store.read())[0]
