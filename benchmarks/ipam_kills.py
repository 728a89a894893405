"""The IPAM's file store under 32 processes that are killed at random moments, until each slot has done its operations (lab.ipam.processes).

RHIZOME_SOAK_OPERATIONS says how many each (default 100; `make soak` records 10,000).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from lab.ipam import processes

OPERATIONS = int(os.environ.get("RHIZOME_SOAK_OPERATIONS", "100"))
PROCESSES = 32
#: In each slot, one after another.
KILLS = 10


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="rhizome-soak-") as folder:
        accounts = processes.run(Path(folder), PROCESSES, OPERATIONS, KILLS, at_once=30)
    what = f"{PROCESSES} processes on one file, {accounts.kills} of them killed, {accounts.seconds:.0f} s"
    yield Figure("ipam.processes.operations", accounts.operations, "operations", n=accounts.operations, note=what)
    yield Figure(
        "ipam.processes.duplicates",
        accounts.duplicates,
        "addresses",
        n=accounts.transactions,
        note="with two owners at once",
    )
    yield Figure(
        "ipam.processes.lost", accounts.lost, "grants", n=accounts.operations, note="told, and not in the journal"
    )
    yield Figure(
        "ipam.processes.leaked", accounts.leaked, "owners", n=accounts.operations, note="never told, because of a kill"
    )
    yield Figure(
        "ipam.processes.leaked_after_gc",
        accounts.leaked_after_gc,
        "owners",
        n=accounts.operations,
        note="after garbage collection",
    )
