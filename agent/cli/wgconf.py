"""`rhizome-agent wgconf`: a device as wg-quick text."""

from __future__ import annotations

import argparse
import asyncio
import sys

from agent.errors import ConfigError, RhizomeError
from agent.exits import Exit
from agent.kinds import IFNAME
from agent.model import DeviceState


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ifname", metavar="IFNAME", help="name of the WireGuard device")


def run(arguments: argparse.Namespace) -> int:
    from agent.wgconf import export

    try:
        ifname = IFNAME.parse(arguments.ifname)
    except ValueError as exc:
        raise ConfigError(f"IFNAME: {exc}") from exc
    state = asyncio.run(_read(ifname))
    if state is None:
        raise RhizomeError(f"there is no WireGuard device {ifname} here: see `ip link show type wireguard`")
    sys.stdout.write(export(state))
    return Exit.OK


async def _read(ifname: str) -> DeviceState | None:
    """From whichever data plane has the device."""
    from agent.wireguard.choose import Mode, choose

    choice = await choose(Mode.AUTO)
    state = await choice.backend.read(ifname)
    if state is None and choice.kind is Mode.KERNEL:
        from agent.errors import Unsupported

        try:
            return await (await choose(Mode.USERSPACE)).backend.read(ifname)
        except Unsupported:
            return None
    return state
