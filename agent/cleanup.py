"""Removes what Rhizome made in this network namespace, and nothing else.

Works without any daemon and without knowing its settings: everything of ours is tagged (routes and rules by protocol number,
one nft table by name, devices by ifalias). Sysctls stay: what they were before is not known any more.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.host import DeleteDevice, NetStack, NetStep, Step, WireGuard
from agent.model import Device, Observed, Tunnel
from agent.plan import plan


async def find(net: NetStack) -> tuple[Step, ...]:
    """The steps that would remove all of ours, in order; empty when there is nothing."""
    state = await net.read(None)
    devices = tuple(Device(name, None, alias=link.alias) for name, link in state.links)
    return plan(Tunnel(), Observed(Tunnel(devices, state.routes, state.firewall), rules=state.rules))


async def remove(steps: Sequence[Step], backends: Sequence[WireGuard], net: NetStack) -> None:
    """Apply what `find` said. A device is deleted by the backend that knows it. Raises HostError at the first failure."""
    for step in steps:
        if isinstance(step, DeleteDevice):
            for wg in backends:
                if await wg.read(step.ifname) is not None:
                    await wg.delete(step.ifname)
        elif isinstance(step, NetStep):
            await net.apply([step])
