"""`rhizome-agent rotate`: the seed servers of this host give every client a new preshared key, or replace WireGuard's own, now."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from agent.cli.status import collect
from agent.errors import RhizomeError
from agent.exits import Exit
from agent.health import duration
from agent.identity import Role
from agent.status import ASKED_KEYS_SUFFIX, ASKED_SUFFIX

#: A daemon looks once a second.
PATIENCE_S = 10.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime-dir", type=Path, default=Path("/run/rhizome"), metavar="PATH", help="default: /run/rhizome"
    )
    parser.add_argument(
        "--wireguard-keys",
        action="store_true",
        help="replace WireGuard's own keys instead, the server's and those of all clients; sessions are made anew beside the old ones",
    )


def run(arguments: argparse.Namespace) -> int:
    """Raises RhizomeError where no seed server takes the order. Clients without a stream get theirs when they are back."""
    servers = [status.ifname for status in collect(arguments.runtime_dir) if status.role == Role.SEED_SERVER.value]
    if not servers:
        raise RhizomeError(
            f"no seed server runs in {arguments.runtime_dir}: run this where one does, or name its --runtime-dir"
        )
    for ifname in servers:
        if arguments.wireguard_keys:
            _order(arguments.runtime_dir / f"{ifname}{ASKED_KEYS_SUFFIX}")
            sys.stdout.write(
                f"{ifname}: WireGuard's keys are being replaced; `rhizome-agent status` says when that is done\n"
            )
        else:
            _order(arguments.runtime_dir / f"{ifname}{ASKED_SUFFIX}")
            sys.stdout.write(f"{ifname}: every client gets a new preshared key; sessions go on\n")
    return Exit.OK


def _order(path: Path) -> None:
    try:
        path.touch(mode=0o600)
    except OSError as exc:
        raise RhizomeError(f"{path}: {exc.strerror}: run this as root") from exc
    until = time.monotonic() + PATIENCE_S
    while path.exists():
        if time.monotonic() > until:
            path.unlink(missing_ok=True)
            raise RhizomeError(f"{path}: the daemon did not take the order within {duration(PATIENCE_S)}: see its log")
        time.sleep(0.05)
