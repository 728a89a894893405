"""Setting and reading large WireGuard devices: user space on this machine, the kernel here or in a virtual machine.

The baselines are measured in the same run: pyroute2's WireGuard class for the kernel, wg(8) for wireguard-go. In a virtual
machine without acceleration only the ratios mean something. Needs root.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks._machine import elsewhere, in_vm, kernel_has_wireguard
from benchmarks.figure import Figure

_OWN_NAMESPACE = ("unshare", "--net")


def run() -> Iterator[Figure]:
    yield from elsewhere(_OWN_NAMESPACE, "_wireguard", "userspace")
    if kernel_has_wireguard():
        yield from elsewhere(_OWN_NAMESPACE, "_wireguard", "kernel")
    else:
        yield from in_vm("_wireguard", "kernel")
