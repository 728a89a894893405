"""Setting and reading large WireGuard devices: user space on this machine, the kernel here or in a virtual machine.

The baselines are measured in the same run: pyroute2's WireGuard class for the kernel, wg(8) for wireguard-go. In a virtual
machine without acceleration only the ratios mean something. Needs root.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.wireguard import kernel
from benchmarks.figure import Figure

_ROOT = Path(__file__).parents[1]
_LIMIT_S = 1200


def run() -> Iterator[Figure]:
    inner = [sys.executable, "-m", "benchmarks._wireguard"]
    here = ["unshare", "--net"]
    yield from _figures([*here, *inner, "userspace"])
    native = asyncio.run(kernel.probe()) is None
    machine = here if native else [str(_ROOT / "scripts/kernel-vm"), "-t", str(_LIMIT_S), "--"]
    yield from _figures([*machine, *inner, "kernel"], "" if native else "in a virtual machine without acceleration")


def _figures(command: Sequence[str], where: str = "") -> Iterator[Figure]:
    done = subprocess.run(
        command,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_LIMIT_S + 120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            fields = json.loads(line)
            del fields["ratio"]
            fields["note"] = ", ".join(filter(None, (fields["note"], where)))
            yield Figure(**fields)
