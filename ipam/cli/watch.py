"""`rhizome-ipam watch`: every change of the store as it happens, one line each."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from agent.exits import Exit
from ipam.cli import common
from ipam.codec import encode, encode_owner


def arguments(parser: argparse.ArgumentParser) -> None:
    common.store_arguments(parser)
    parser.add_argument("--count", type=int, metavar="N", help="end after N changes (default: never)")
    common.output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    common.must_exist(arguments.store)
    asyncio.run(_watch(arguments))
    return Exit.OK


async def _watch(arguments: argparse.Namespace) -> None:
    left = arguments.count
    async with common.opened(arguments.store) as store:
        ledger, version = await store.read()
        _say(arguments, {"what": "begins", "allocations": len(ledger), "generation": ledger.generation})
        while left is None or left > 0:
            await store.changed(version)
            before = ledger
            ledger, version = await store.read()
            put, gone = ledger.owners.changes_since(before.owners)
            for allocation in put.values():
                _say(arguments, {"what": common.state(allocation), **encode(allocation)})
            for owner in gone:
                _say(arguments, {"what": "free", "owner": encode_owner(owner)})
            left = None if left is None else left - len(put) - len(gone)


def _say(arguments: argparse.Namespace, fields: dict[str, Any]) -> None:
    if arguments.output == "json":
        line = json.dumps(fields)
    else:
        of = fields.get("owner") or {}
        who = f"{of['kind']} {of['namespace']}/{of['name']} ({of['uid']})" if of else ""
        rest = " ".join(fields.get("addresses", [])) or f"{fields.get('allocations', '')}"
        line = "  ".join(filter(None, (common.when(time.time()), str(fields["what"]), who, rest)))
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
