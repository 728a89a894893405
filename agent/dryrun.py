"""`plan`: what a daemon would change on this host, printed as commands, and nothing changed."""

from __future__ import annotations

import sys

from agent.dataplane import DataPlane
from agent.engine import observe
from agent.exits import Exit
from agent.model import Tunnel
from agent.plan import plan


async def dry_run(plane: DataPlane, want: Tunnel) -> int:
    """Exit.OK when the host is as wanted, Exit.CHANGES when there are steps. Raises what a pass of the engine would meet."""
    steps = plan(want, await observe(plane.wg, plane.net, [device.ifname for device in want.devices], want))
    for step in steps:
        sys.stdout.write(f"{step}\n")
    sys.stdout.write(f"{len(steps)} changes\n" if steps else "nothing to change\n")
    return Exit.CHANGES if steps else Exit.OK
