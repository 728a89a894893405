"""`rhizome-agent revoke`: puts somebody on a seed server's deny list, which cuts them within seconds."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from agent import denylist
from agent.denyfile import change
from agent.errors import ConfigError
from agent.exits import Exit


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "who",
        metavar="IDENTITY|KEY",
        help="spiffe://CONTROL_PLANE/ROLE/NAME as `status` shows it, or a WireGuard public key",
    )
    parser.add_argument(
        "--deny-file", type=Path, required=True, metavar="PATH", help="the seed server's deny_file; made when missing"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="for people who read the file")
    parser.add_argument("--undo", action="store_true", help="take the entry off the list again")


def run(arguments: argparse.Namespace) -> int:
    try:
        who = denylist.entry(arguments.who)
    except ValueError as exc:
        raise ConfigError(f"revoke: {exc}") from exc
    if arguments.undo:
        changed = change(arguments.deny_file, lambda text: denylist.removed(text, who))
        words = "is let in again" if changed else "was not on the list"
    else:
        remark = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {arguments.reason}".strip()
        changed = change(arguments.deny_file, lambda text: denylist.added(text, who, remark))
        words = (
            "is denied; seed servers that read this file cut it within five seconds"
            if changed
            else "was denied already"
        )
    sys.stdout.write(f"{who} {words}\n")
    return Exit.OK
