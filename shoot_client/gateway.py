"""What a shoot node forwards for the control plane: which prefixes, and which sysctls that takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import IPAddress, IPNetwork


def forwarded(carries: Iterable[IPNetwork], node_addresses: Iterable[IPAddress]) -> tuple[IPNetwork, ...]:
    """The prefixes that lie behind this node; its own addresses need no forwarding."""
    own = frozenset(node_addresses)
    return tuple(p for p in carries if not (p.prefixlen == p.max_prefixlen and p.network_address in own))


def sysctls(behind: Iterable[IPNetwork]) -> frozenset[tuple[str, str]]:
    """Forwarding for the address families that need it. IPv6 forwarding makes a node ignore router advertisements unless
    `accept_ra` is 2 (kernel ip-sysctl), so it is asked for only when something IPv6 really lies behind this node."""
    families = {prefix.version for prefix in behind}
    wanted = {("net.ipv4.ip_forward", "1")} if 4 in families else set()
    if 6 in families:
        wanted |= {("net.ipv6.conf.all.forwarding", "1")}
    return frozenset(wanted)
