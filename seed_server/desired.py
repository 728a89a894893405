"""From the registry to the host and to the clients: the desired tunnel, and each client's grant. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_interface, ip_network

from agent.messages import VERSION_MAX, Grant
from agent.model import Device, IPNetwork, Peer, PublicKey, Route, Tunnel
from seed_server.charter import Charter
from seed_server.registry import STREAM, Client, Registry


class Peers:
    """The peers of clients, made once for as long as neither the client nor what it carries changes."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Client, tuple[IPNetwork, ...], Peer]] = {}

    def of(self, registry: Registry, carries: Carries) -> list[Peer]:
        made = self._made
        self._made = {}
        for key, client in registry.clients.items():
            carried = carries[key]
            known = made.get(key)
            if known is None or known[0] is not client or known[1] is not carried:
                known = client, carried, _peer(client, carried)
            self._made[key] = known
        return [peer for _, _, peer in self._made.values()]


#: Identity text -> the prefixes that this client carries now.
Carries = Mapping[str, tuple[IPNetwork, ...]]


def tunnel(
    device: Device, charter: Charter, registry: Registry, carries: Carries, known: Peers | None = None
) -> Tunnel:
    """The whole host of a seed server. `device` comes without addresses and peers.

    Every declared range is routed into the tunnel as long as the server runs, whoever carries it: a packet for a shoot that
    nobody carries now ends here, and never leaves by the pod's default route.
    """
    peers = (known or Peers()).of(registry, carries)
    peers += _adopted(registry, peers)
    device = replace(
        device,
        addresses=frozenset(ip_interface(f"{a}/{a.max_prefixlen}") for a in charter.addresses),
        peers=frozenset(peers),
    )
    source = {address.version: address for address in charter.addresses}
    prefixes = charter.tunnel_networks + charter.ranges
    return Tunnel(
        (device,), frozenset(Route(p, device.ifname, source.get(p.version)) for p in prefixes), charter.firewall
    )


def grant(public_key: PublicKey, epoch: str, charter: Charter, client: Client, now: float) -> Grant:
    """What this client is told. It opens all that it may ever carry: who of several carries a part is decided here alone,
    and changes without a word to any of them."""
    return Grant(
        version=VERSION_MAX,
        epoch=epoch,
        public_keys=((STREAM, public_key),),
        addresses=client.addresses,
        servers=charter.addresses,
        tunnel_networks=charter.tunnel_networks,
        carries=client.own + client.shared,
        refused=tuple((str(r.prefix), r.text) for r in client.refused),
        mtu_bytes=charter.mtu_bytes,
        persistent_keepalive_s=charter.persistent_keepalive_s,
        lifetime_s=max(0.0, client.expires_at - now),
        preshared_key=client.preshared_key,
    )


def _peer(client: Client, carries: Iterable[IPNetwork]) -> Peer:
    """No endpoint: WireGuard learns it from the client's first packet, and follows the client to each new stream."""
    own = {ip_network(address) for address in client.addresses}
    return Peer(client.public_key, frozenset(own | set(carries)), preshared_key=client.preshared_key)


def _adopted(registry: Registry, peers: list[Peer]) -> list[Peer]:
    """Peers found at start and not yet claimed by a client, without the prefixes that others hold now."""
    if not registry.adopted:
        return []
    keys = {peer.public_key for peer in peers}
    taken = {network for peer in peers for network in peer.allowed_ips}
    left = [
        replace(p, allowed_ips=p.allowed_ips - taken, endpoint=None)
        for p in registry.adopted
        if p.public_key not in keys
    ]
    return [peer for peer in left if peer.allowed_ips]
