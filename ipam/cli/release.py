"""`rhizome-ipam release`: an owner's blocks go into quarantine."""

from __future__ import annotations

import argparse
import asyncio
import time

from agent.exits import Exit
from ipam.cli import common
from ipam.codec import encode
from ipam.model import Allocation
from ipam.service import AddressBook


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("owner", metavar="KIND/NAMESPACE/NAME/UID", help="who gives it back; the UID has to match")
    common.store_arguments(parser)
    common.pool_arguments(parser)
    common.output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Releasing what is not held is done already: OK."""
    held = asyncio.run(_release(arguments))
    text = f"{held.owner} gave back {' '.join(map(str, held.blocks))}" if held else f"{arguments.owner} holds nothing"
    common.show(arguments, encode(held) if held else None, [text])
    return Exit.OK


async def _release(arguments: argparse.Namespace) -> Allocation | None:
    who, file = common.owner(arguments.owner), common.pools(arguments)
    common.must_exist(arguments.store)
    async with common.opened(arguments.store) as store:
        book = AddressBook(store, common.policy(file.pools[:1], file.quarantine_s))
        return await book.release(who, time.time())
