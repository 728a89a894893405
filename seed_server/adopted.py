"""Peers that a server found on its devices at start, and whose clients have not spoken since: they lose no packet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from ipaddress import ip_network

from agent.denylist import DenyList
from agent.model import IPNetwork, Peer
from seed_server.registry import Registry, put


def awaited(registry: Registry) -> list[Peer]:
    """Those whose clients have not come back, with whatever key."""
    if not registry.adopted + registry.adopted_next:
        return []
    back = {ip_network(address) for client in registry.clients.values() for address in client.addresses}
    return [
        peer
        for peer in registry.adopted + registry.adopted_next
        if peer.public_key not in registry.holders and back.isdisjoint(peer.allowed_ips)
    ]


def unclaimed(adopted: Sequence[Peer], peers: Sequence[Peer]) -> list[Peer]:
    """Those of one device that are none of its clients' `peers`, without the prefixes that these hold. WireGuard knows their endpoints."""
    if not adopted:
        return []
    keys = {peer.public_key for peer in peers}
    left = [replace(peer, endpoint=None) for peer in adopted if peer.public_key not in keys]
    return _but(left, {network for peer in peers for network in peer.allowed_ips})


def all_on(registry: Registry, device: str) -> Registry:
    """There is no other device than this one any more: who was at another one is expected here, with the same key."""
    for client in registry.clients.values():
        if client.once is None:
            leg = client.at(device) or replace(client.leg, device=device)
            if client.device != device or client.other is not None or client.asked:
                registry = put(registry, replace(client.on(leg, None), asked=False))
    keys = {peer.public_key for peer in registry.adopted_next}
    old = [peer for peer in registry.adopted if peer.public_key not in keys]
    # Of a client that had a peer at each device, the one stays that its packets went by.
    by_old = {network for peer in old for network in peer.allowed_ips} - registry.next_routes
    adopted = _but(registry.adopted_next, by_old)
    adopted += _but(old, {network for peer in adopted for network in peer.allowed_ips})
    return replace(registry, adopted=tuple(adopted), adopted_next=(), next_routes=frozenset())


def without_adopted(registry: Registry, denied: DenyList) -> Registry:
    """Without those who are denied, by key or by address."""

    def stays(peer: Peer) -> bool:
        holders = {registry.known.get(network.network_address) for network in peer.allowed_ips} - {None}
        return peer.public_key not in denied.keys and denied.identities.isdisjoint(map(str, holders))

    return replace(
        registry,
        adopted=tuple(filter(stays, registry.adopted)),
        adopted_next=tuple(filter(stays, registry.adopted_next)),
        adopted_direct=tuple(filter(stays, registry.adopted_direct)),
    )


def host_address(peer: Peer) -> str:
    """One that only its client has, in the tunnel or as a node: where the name is not known. IPv4 if it has both."""
    own = min(peer.allowed_ips, key=lambda n: (n.max_prefixlen - n.prefixlen, n.version, n.network_address.packed))
    return str(own.network_address)


def _but(peers: Iterable[Peer], networks: Set[IPNetwork]) -> list[Peer]:
    """Without these networks; peers that have no other are left out."""
    return [replace(peer, allowed_ips=left) for peer in peers if (left := peer.allowed_ips - networks)]
