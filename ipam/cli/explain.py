"""`rhizome-ipam explain`: all that is known of one address."""

from __future__ import annotations

import argparse
import asyncio
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agent.cli.table import table
from agent.errors import ConfigError
from agent.exits import Exit
from agent.model import IPAddress
from ipam.cli import common
from ipam.cli.list import read
from ipam.codec import encode
from ipam.stores.history import Event, events
from ipam.usage import Explanation, Standing, explain

_WORDS = {
    Standing.FREE: "is free",
    Standing.USED: "is in use",
    Standing.QUARANTINED: "was given back and rests",
    Standing.ORPHAN: "is in use, and no pool would give it today: it stays with its owner",
    Standing.RESERVED: "is reserved: its pool never gives it",
    Standing.FOREIGN: "is in no pool",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS")
    common.store_arguments(parser)
    common.pool_arguments(parser)
    common.output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        address = ip_address(arguments.address)
    except ValueError as exc:
        raise ConfigError(f"{arguments.address[:60]!r} is no IP address") from exc
    file = common.pools(arguments)
    common.must_exist(arguments.store)
    found = explain(asyncio.run(read(arguments.store)), file.pools, address)
    past = _past(arguments.store, address)
    common.show(arguments, _value(found, past), _lines(found, past))
    return Exit.OK


def _past(store: str, address: IPAddress) -> list[Event]:
    """What the journal of a file knows; a Kubernetes store's history is in the audit log of its API server."""
    return events(Path(store), address) if not store.startswith("kubernetes:") else []


def _lines(found: Explanation, past: list[Event]) -> list[str]:
    lines = [f"{found.address} {_WORDS[found.standing]}"]
    lines += [f"  pool {pool}" for pool in found.pools]
    for block, allocation in found.allocations:
        lines.append(f"  {block} of {allocation.owner}: {common.state(allocation)}")
        lines.append(f"    since {common.when(allocation.since)}, last changed by generation {allocation.generation}")
        if allocation.expires is not None:
            lines.append(f"    expires {common.when(allocation.expires)}")
        if allocation.parent is not None:
            lines.append(f"    out of the block of {allocation.parent}")
    rows = [(common.when(e.at), str(e.generation), e.what, str(e.owner)) for e in past]
    return lines + table(("WHEN", "GENERATION", "WHAT", "WHO"), rows)


def _value(found: Explanation, past: list[Event]) -> dict[str, Any]:
    return {
        "address": str(found.address),
        "standing": found.standing.value,
        "pools": [str(pool) for pool in found.pools],
        "allocations": [{"block": str(block), **encode(allocation)} for block, allocation in found.allocations],
        "history": [{"at": e.at, "generation": e.generation, "what": e.what, "owner": str(e.owner)} for e in past],
    }
