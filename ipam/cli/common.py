"""What the sub-commands share: flags for the store and the pools, owners as text, and how an answer is printed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.cli.flags import read_toml
from agent.cli.table import table
from agent.errors import ConfigError, StoreError
from agent.kinds import CIDR
from ipam.codec import encode
from ipam.model import Allocation, Owner, Policy, Pool
from ipam.poolfile import PoolFile, parse
from ipam.stores import Store
from ipam.stores.configmaps import in_configmaps
from ipam.stores.file import FileStore

STORE = Path("/var/lib/rhizome/addresses.log")
DEFAULT_NETWORKS = ("192.168.128.0/17", "fd8f:6d53:b97a:1::/96")
_KUBERNETES = "kubernetes:"


def store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        default=str(STORE),
        metavar="STORE",
        help=f"a file, or {_KUBERNETES}NAMESPACE/NAME for ConfigMaps NAME-0, NAME-1, ... (default: {STORE})",
    )


def pool_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pools", type=Path, metavar="PATH", help="TOML file of pools (see examples/pools.toml)")
    parser.add_argument(
        "--network",
        action="append",
        metavar="CIDR",
        help="without --pools: a tunnel network, as a seed server has it; may be repeated "
        f"(default: {', '.join(DEFAULT_NETWORKS)})",
    )


def output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")


def pools(arguments: argparse.Namespace) -> PoolFile:
    """Raises ConfigError with every problem found."""
    if arguments.pools is not None:
        if arguments.network:
            raise ConfigError("--network: the pools come from the file that --pools names; leave one of the two out")
        return parse(read_toml(arguments.pools).table)
    found, problems = [], []
    for text in arguments.network or DEFAULT_NETWORKS:
        try:
            found.append(Pool.tunnel(CIDR.parse(text)))
        except ValueError as exc:
            problems.append(f"--network {text[:60]}: {exc}")
    if problems:
        raise ConfigError(*problems)
    return PoolFile(tuple(found))


def policy(chosen: Sequence[Pool], quarantine_s: float) -> Policy:
    """Raises ConfigError when an owner cannot have a block of each."""
    try:
        return Policy(tuple(chosen), quarantine_s)
    except ValueError as exc:
        raise ConfigError(f"{exc}; name some of them with --pool") from exc


@asynccontextmanager
async def opened(text: str) -> AsyncIterator[Store]:
    """The store that --store names. Raises ConfigError, Unsupported, StoreError."""
    if not text.startswith(_KUBERNETES):
        if not text:
            raise ConfigError("--store: is empty; name a file")
        yield FileStore(Path(text))
        return
    namespace, slash, name = text.removeprefix(_KUBERNETES).partition("/")
    if not (namespace and slash and name):
        raise ConfigError(f"--store: has to be {_KUBERNETES}NAMESPACE/NAME")
    async with in_configmaps(namespace, name) as store:
        yield store


def must_exist(text: str) -> None:
    """Reading a ledger that is not there would say that all is free. Raises StoreError."""
    if not text.startswith(_KUBERNETES) and not Path(text).exists():
        raise StoreError(f"there is no address ledger {text}; name it with --store")


def owner(text: str) -> Owner:
    """KIND/NAMESPACE/NAME/UID; the UID may hold slashes. Raises ConfigError."""
    parts = text.split("/", 3)
    if len(parts) < 4 or not all(parts) or not text.isprintable():
        raise ConfigError(
            f"{text[:100]!r} names no owner: write KIND/NAMESPACE/NAME/UID, such as shoot-client/shoot--a--b/node-1/4f2c"
        )
    return Owner(*parts)


def labels(texts: Iterable[str]) -> dict[str, str]:
    """Raises ConfigError."""
    pairs = [text.partition("=") for text in texts]
    if wrong := [key for key, equals, value in pairs if not (key and equals and value)]:
        raise ConfigError(*(f"--label {text[:60]}: write key=value" for text in wrong))
    return {key: value for key, _, value in pairs}


def when(seconds: float | None) -> str:
    """A time in UTC; "" for none."""
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f}"


def state(allocation: Allocation) -> str:
    return f"rests until {when(allocation.rests_until)}" if allocation.resting else "held"


def row(allocation: Allocation) -> tuple[str, ...]:
    owner = allocation.owner
    blocks = " ".join(map(str, allocation.blocks))
    since, expires = when(allocation.since), when(allocation.expires)
    return blocks, owner.kind, owner.namespace, owner.name, owner.uid, state(allocation), since, expires


HEADS = ("BLOCKS", "KIND", "NAMESPACE", "NAME", "UID", "STATE", "SINCE", "EXPIRES")


def show(arguments: argparse.Namespace, value: Any, lines: Iterable[str]) -> None:
    """`value` as JSON or `lines` as text."""
    if arguments.output == "json":
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(lines).lstrip("\n") + "\n")


def show_allocations(arguments: argparse.Namespace, allocations: Sequence[Allocation]) -> None:
    show(arguments, [encode(a) for a in allocations], table(HEADS, map(row, allocations)) or ["nothing is allocated"])
