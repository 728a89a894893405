"""Rhizome's processes on a machine, and how to make them stand still."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.namespaces import Machine
from lab.processes import LabError, pids_in_network_namespace

_PROGRAMS = {"rhizome-shoot-client", "rhizome-seed-server", "rhizome-agent", "wireguard-go"}


def rhizome_processes(machine: Machine) -> list[int]:
    """Process ids of daemons, companions and user-space WireGuard."""
    found = []
    for pid in pids_in_network_namespace(machine.path):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if any(word.startswith("agent.") or Path(word).name in _PROGRAMS for word in words):
                found.append(pid)
    return found


@contextmanager
def frozen(machine: Machine) -> Iterator[None]:
    """They stand still for as long as the block lasts; TCP connections stay. With the kernel's WireGuard its packets go on.
    Raises LabError when there is none."""
    pids = rhizome_processes(machine)
    if not pids:
        raise LabError(f"there is nothing of Rhizome to freeze on {machine.name}")
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
