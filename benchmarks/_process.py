"""Memory and CPU of a process, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.namespaces import Machine
from lab.processes import LabError, pids_in_network_namespace


@dataclass(frozen=True, slots=True)
class Usage:
    """Resident memory in MiB; `pss_mib` counts each shared page by its share. CPU seconds since the process began."""

    rss_mib: float
    pss_mib: float
    cpu_s: float


def usage(pid: int) -> Usage:
    """Of one process (proc(5): smaps_rollup, stat)."""
    rollup = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Usage(_mib(rollup["Rss"]), _mib(rollup["Pss"]), ticks / os.sysconf("SC_CLK_TCK"))


def cpu_seconds(machines: Iterable[Machine], apart_from: str) -> dict[str, float]:
    """CPU seconds of the processes on these machines since each began, by program; those with these words are left out."""
    found: defaultdict[str, float] = defaultdict(float)
    for machine in machines:
        for pid in pids_in_network_namespace(machine.path):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
                if not any(apart_from in word for word in words):
                    found[Path(words[0]).name] += usage(pid).cpu_s
    return found


def _mib(text: str) -> float:
    return int(text.split()[0]) / 1024


def pid_of(machine: Machine, words: str) -> int:
    """The one process on a machine whose command line has `words`. Raises LabError for none or several."""
    found = []
    for pid in pids_in_network_namespace(machine.path):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if words in line:
            found.append(pid)
    if len(found) != 1:
        raise LabError(f"{len(found)} processes with {words!r} on {machine.name}")
    return found[0]
