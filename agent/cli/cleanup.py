"""`rhizome-agent cleanup`: stop carriers and egress proxies, and remove every device, route, rule and nft table of ours; nothing else."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from agent import cleanup
from agent.carrier.client import stop_carrier
from agent.companion.attach import Companion, stop_companion
from agent.companion.lines import Drain
from agent.daemon import CARRIER_SUFFIX, EGRESS_SUFFIX
from agent.errors import RhizomeError, Unsupported
from agent.exits import Exit
from agent.host import Step, WireGuard
from agent.netlink import LinuxNetStack
from agent.status import SOCKET_SUFFIX
from agent.wireguard.choose import PROGRAM, Mode, choose

#: All that is known here of a seed server's egress process: how it is told to end.
EGRESS = Companion("egress", "", str, bytes, Drain(0.0))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--runtime-dir", type=Path, default=Path("/run/rhizome"), metavar="PATH", help="default: /run/rhizome"
    )
    parser.add_argument(
        "--wireguard-go", default=PROGRAM, metavar="PROGRAM", help=f"as given to the daemon; default: {PROGRAM}"
    )


def run(arguments: argparse.Namespace) -> int:
    """A daemon that still runs would make everything again: it has to be stopped first, and this says so."""
    statuses = sorted(arguments.runtime_dir.glob(f"*{SOCKET_SUFFIX}"))
    if running := _daemons(statuses):
        raise RhizomeError(
            f"a daemon still runs for {', '.join(running)} and would make all of it again: stop it first"
        )
    carriers = sorted(arguments.runtime_dir.glob(f"*{CARRIER_SUFFIX}"))
    egresses = sorted(arguments.runtime_dir.glob(f"*{EGRESS_SUFFIX}"))
    steps = asyncio.run(_find() if arguments.dry_run else _remove(carriers, egresses, arguments.wireguard_go))
    if not arguments.dry_run:
        for path in (*carriers, *egresses, *statuses):
            path.unlink(missing_ok=True)
    _tell(carriers, egresses, steps, dry_run=arguments.dry_run)
    return Exit.OK


async def _find() -> tuple[Step, ...]:
    async with LinuxNetStack() as net:
        return await cleanup.find(net)


async def _remove(carriers: list[Path], egresses: list[Path], wireguard_go: str) -> tuple[Step, ...]:
    for path in carriers:
        await stop_carrier(path)
    for path in egresses:
        await stop_companion(EGRESS, path)
    async with LinuxNetStack() as net:
        steps = await cleanup.find(net)
        await cleanup.remove(steps, await _backends(wireguard_go), net)
    return steps


def _daemons(sockets: list[Path]) -> list[str]:
    """Devices whose daemon answers on its status socket."""
    from agent.cli.status import answered, ask

    return [path.name.removesuffix(SOCKET_SUFFIX) for path in sockets if answered(ask(path))]


async def _backends(wireguard_go: str) -> list[WireGuard]:
    """All that work here: the device may have been made by another one than would be chosen now."""
    found: list[WireGuard] = []
    for mode in (Mode.KERNEL, Mode.USERSPACE):
        try:
            found.append((await choose(mode, program=wireguard_go)).backend)
        except Unsupported:
            continue
    return found


def _tell(carriers: list[Path], egresses: list[Path], steps: tuple[Step, ...], *, dry_run: bool) -> None:
    lines = [f"stop the carrier of {path.name.removesuffix(CARRIER_SUFFIX)}" for path in carriers]
    lines += [f"stop the egress proxy of {path.name.removesuffix(EGRESS_SUFFIX)}" for path in egresses]
    lines += map(str, steps)
    verdict = "nothing of Rhizome's is here" if not lines else "would do" if dry_run else "done"
    sys.stdout.write("\n".join([f"{verdict}{':' if lines else ''}", *(f"  {line}" for line in lines)]) + "\n")
    if steps and not dry_run:
        sys.stdout.write("forwarding sysctls stay as they are: what they were before is not known any more\n")
