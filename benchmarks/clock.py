"""How long traffic is gone after the system's clock is stepped, on the kernel's WireGuard. Always in the virtual machine:
nobody's clock is stepped for a benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks._machine import in_vm
from benchmarks.figure import Figure


def run() -> Iterator[Figure]:
    """`outage.clock_forward_s`, `outage.clock_back_s`."""
    yield from in_vm("_clock")
