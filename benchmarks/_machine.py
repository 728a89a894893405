"""The part of a benchmark that prints one JSON object per figure from another process, perhaps in a virtual machine."""

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


def kernel_has_wireguard() -> bool:
    """This machine's own."""
    return asyncio.run(kernel.probe()) is None


def elsewhere(prefix: Sequence[str], module: str, *arguments: str, where: str = "") -> Iterator[Figure]:
    """The figures of `python -m benchmarks.MODULE ARGUMENTS`, started by the command `prefix`; `where` is added to their notes."""
    command = [*prefix, sys.executable, "-m", f"benchmarks.{module}", *arguments]
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


def in_vm(module: str, *arguments: str) -> Iterator[Figure]:
    """The same inside the virtual machine with a Debian kernel."""
    prefix = [str(_ROOT / "scripts/kernel-vm"), "-t", str(_LIMIT_S), "--", "env", "RHIZOME_LAB_PATIENCE=8"]
    yield from elsewhere(prefix, module, *arguments, where="in a virtual machine without acceleration")
