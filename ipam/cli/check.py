"""`rhizome-ipam check`: does the ledger hold together, do the pools hold what it says, and who is not there any more?"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from agent.errors import ConfigError
from agent.exits import Exit
from ipam.cli import common
from ipam.cli.list import pool_table, read
from ipam.ledger import Ledger
from ipam.model import Owner
from ipam.service import ALARMS
from ipam.usage import contradictions, orphans, usage


def arguments(parser: argparse.ArgumentParser) -> None:
    common.store_arguments(parser)
    common.pool_arguments(parser)
    parser.add_argument(
        "--living",
        metavar="PATH",
        help="who exists, one KIND/NAMESPACE/NAME/UID a line, - for standard input: finds leaks and the unserved "
        "among owners of the kinds that are in it",
    )
    common.output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """FAILED when the ledger contradicts itself, an owner has nothing, or a dead one has something. Changes nothing."""
    file = common.pools(arguments)
    living = _living(arguments.living) if arguments.living else None
    common.must_exist(arguments.store)
    ledger = asyncio.run(read(arguments.store))
    wrong = {"contradictions": contradictions(ledger)}
    if living is not None:
        wrong |= _leaks(ledger, living)
    notes = {
        "orphans": [
            f"{block} of {a.owner} is in no pool; it stays its own" for block, a in orphans(ledger, file.pools)
        ],
        "filling": [
            f"pool {pool} is {seen.taken:.0%} taken"
            for pool in file.pools
            if (seen := usage(ledger, pool)).taken >= ALARMS[0]
        ],
    }
    bad = sum(map(len, wrong.values()))
    verdict = (
        f"{bad} problems" if bad else "no contradiction, nothing leaks" if living is not None else "no contradiction"
    )
    lines = [f"{verdict}; {len(ledger)} allocations, generation {ledger.generation}"]
    lines += [f"  {kind}: {text}" for kind, texts in {**wrong, **notes}.items() for text in texts]
    value = {"allocations": len(ledger), "generation": ledger.generation, **wrong, **notes}
    common.show(arguments, value, lines + pool_table(ledger, file.pools))
    return Exit.FAILED if bad else Exit.OK


def _living(text: str) -> set[Owner]:
    try:
        content = sys.stdin.read() if text == "-" else Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--living {text}: {getattr(exc, 'strerror', None) or exc}") from exc
    return {common.owner(line.strip()) for line in content.splitlines() if line.strip()}


def _leaks(ledger: Ledger, living: set[Owner]) -> dict[str, list[str]]:
    kinds = {owner.kind for owner in living}
    held = {a.owner for a in ledger if not a.resting and a.owner.kind in kinds}
    return {
        "leaked": [f"{owner} holds addresses and does not exist" for owner in sorted(held - living)],
        "missing": [f"{owner} exists and holds nothing" for owner in sorted(living - held)],
    }
