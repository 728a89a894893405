"""The whole way from a client, as kube-apiserver is one, to a node: through the egress proxy, WireGuard, the carrier and Envoy.

client -- Unix socket or TLS with client certificate -- egress proxy -- WireGuard -- carrier -- Envoy (by SNI) -- NAT -- carrier -- WireGuard -- node
client -- the same                  -- konnectivity server -- gRPC in TLS -- Envoy (by SNI) -- NAT -- konnectivity agent -- node

Each has a lab of its own; both run at once and are measured in turns. All ends share the machine's cores. Where the kernel has no
WireGuard, user space is measured here and the kernel's in a virtual machine, where only the ratios mean something.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import _konnectivity
from benchmarks._machine import elsewhere, in_vm, kernel_has_wireguard
from benchmarks.figure import Figure


def run() -> Iterator[Figure]:
    """`path.BACKEND.WAY.FIGURE`; the baseline is konnectivity through the same kind of Envoy."""
    _konnectivity.build()
    yield from elsewhere((), "_path")
    if not kernel_has_wireguard():
        yield from in_vm("_path")
