"""`rhizome-agent drain`: the egress proxies of this host take no more connections, and end with those that are open."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from agent.companion.attach import Companion, drain_companion
from agent.companion.lines import Drain
from agent.daemon import EGRESS_SUFFIX
from agent.exits import Exit

#: Less than the 30 s that Kubernetes gives a pod.
SECONDS = 25.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime-dir", type=Path, default=Path("/run/rhizome"), metavar="PATH", help="default: /run/rhizome"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="N",
        help=f"then they are cut off (default: {SECONDS:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """A daemon that still runs would start them again: it has to be stopped first."""
    paths = sorted(arguments.runtime_dir.glob(f"*{EGRESS_SUFFIX}"))
    drained = asyncio.run(_drain(paths, max(0.0, arguments.seconds)))
    names = [path.name.removesuffix(EGRESS_SUFFIX) for path, was_there in zip(paths, drained, strict=True) if was_there]
    sys.stdout.write(f"drained the egress proxy of {', '.join(names)}\n" if names else "no egress proxy runs here\n")
    return Exit.OK


async def _drain(paths: list[Path], seconds: float) -> list[bool]:
    kind = Companion("egress", "", str, bytes, Drain(seconds))
    return await asyncio.gather(*(drain_companion(kind, path, seconds) for path in paths))
