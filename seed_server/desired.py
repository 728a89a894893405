"""From the registry to the host and to the clients: the desired tunnel, and each client's grant. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network

from agent.firewall import ALL_REACHABLE, Transit, Unreachable, render
from agent.identity import Role
from agent.messages import DIRECT, STREAM, VERSION_MAX, Credential, Direct, Grant
from agent.model import Device, IPNetwork, Peer, PresharedKey, PublicKey, Route, Tunnel
from seed_server.charter import Charter
from seed_server.registry import Client, Registry

#: Identity text -> the prefixes that this client carries now.
Carries = Mapping[str, tuple[IPNetwork, ...]]

#: What it takes to pass packets on from a sidecar to a client, by IP version.
FORWARDING = {4: ("net.ipv4.ip_forward", "1"), 6: ("net.ipv6.conf.all.forwarding", "1")}

#: Of the routes that only the canary of the second device takes, who names its device.
STANDBY = 100


class Peers:
    """The peers of clients, made once for as long as neither the client nor what it carries changes."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Client, tuple[IPNetwork, ...], Peer]] = {}

    def of(self, registry: Registry, carries: Carries) -> list[Peer]:
        made = self._made
        self._made = {}
        for key, client in registry.clients.items():
            if client.once is not None:
                continue
            carried = carries.get(key, ())
            known = made.get(key)
            if known is None or known[0] is not client or known[1] is not carried:
                known = client, carried, _peer(client, carried)
            self._made[key] = known
        return [peer for _, _, peer in self._made.values()]


@dataclass(frozen=True, slots=True)
class Second:
    """The device of the direct path, without addresses and peers, and each client's preshared key for it."""

    device: Device
    preshared_key: Callable[[Client], PresharedKey]


def tunnel(
    device: Device,
    charter: Charter,
    registry: Registry,
    carries: Carries,
    known: Peers | None = None,
    second: Second | None = None,
    unreachable: Unreachable = ALL_REACHABLE,
) -> Tunnel:
    """The whole host of a seed server. `device` comes without addresses and peers. `unreachable`: what sidecars are refused.

    Every declared range is routed into the tunnel as long as the server runs, whoever carries it: a packet for a shoot that
    nobody carries now ends here, and never leaves by the pod's default route.
    """
    peers = (known or Peers()).of(registry, carries)
    peers += _left(registry.adopted, peers)
    device = replace(
        device,
        addresses=frozenset(ip_interface(f"{a}/{a.max_prefixlen}") for a in charter.addresses),
        peers=frozenset(peers),
    )
    source = {address.version: address for address in charter.addresses}
    prefixes = charter.tunnel_networks + charter.ranges
    routes = {Route(p, device.ifname, source.get(p.version)) for p in prefixes}
    devices = [device]
    if second is not None:
        direct, more = _direct(second, charter, registry)
        devices.append(direct)
        routes |= more
        peers += direct.peers
    transits = frozenset((*_transits(registry), *_adopted_transits(charter, registry, peers)))
    return Tunnel(
        tuple(devices),
        frozenset(routes),
        render(replace(charter.firewall, transits=transits, unreachable=unreachable if transits else ALL_REACHABLE)),
        forwarding(charter) if transits else frozenset(),
    )


def _direct(second: Second, charter: Charter, registry: Registry) -> tuple[Device, set[Route]]:
    """The second device, and routes by it to those who want to be answered by it.

    The canary names its device, and needs a route there even while answers take the other way: one of a high metric.
    """
    ifname = second.device.ifname
    clients = [client for client in registry.clients.values() if client.direct_key is not None]
    peers = [_direct_peer(client, second.preshared_key(client)) for client in clients]
    peers += _left(registry.adopted_direct, peers)
    answered = {ip_network(a) for client in clients if client.path == DIRECT for a in client.addresses}
    back = {ip_network(address) for client in clients for address in client.addresses}
    answered |= {n for peer in peers for n in peer.allowed_ips if n in registry.direct_routes and n not in back}
    source = {address.version: address for address in charter.direct_addresses}
    routes = {Route(n, ifname, source.get(n.version), STANDBY) for n in charter.tunnel_networks}
    routes |= {Route(n, ifname, source.get(n.version)) for n in answered}
    device = replace(
        second.device,
        addresses=frozenset(ip_interface(f"{a}/{a.max_prefixlen}") for a in charter.direct_addresses),
        peers=frozenset(peers),
    )
    return device, routes


def _direct_peer(client: Client, preshared_key: PresharedKey) -> Peer:
    assert client.direct_key is not None
    return Peer(client.direct_key, frozenset(map(ip_network, client.addresses)), preshared_key=preshared_key)


def forwarding(charter: Charter) -> frozenset[tuple[str, str]]:
    """The sysctls for the address families of the tunnel."""
    return frozenset(FORWARDING[address.version] for address in charter.addresses)


def _transits(registry: Registry) -> Iterator[Transit]:
    for client in registry.clients.values():
        if client.identity.role is Role.SIDECAR:
            yield Transit(frozenset(map(ip_network, client.addresses)), frozenset(client.routes))


def _adopted_transits(charter: Charter, registry: Registry, peers: Iterable[Peer]) -> Iterator[Transit]:
    """Those of sidecars that were in before this server started and have not come back yet: they lose no packet. Whose an
    address is says the IPAM."""
    for peer in peers:
        if peer.public_key in registry.holders:
            continue
        own = frozenset(
            n for n in peer.allowed_ips if n.prefixlen == n.max_prefixlen and n.network_address in registry.known
        )
        for identity in {registry.known[network.network_address] for network in own}:
            yield Transit(own, frozenset(charter.policy.reach(identity) or ()))


def grant(
    public_key: PublicKey,
    epoch: str,
    charter: Charter,
    client: Client,
    now: float,
    direct: Direct | None = None,
    credential: Credential | None = None,
) -> Grant:
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
        routes=client.routes,
        direct=direct,
        silence_s=charter.policy.silence_s if client.once is not None else None,
        credential=credential,
    )


def _peer(client: Client, carries: Iterable[IPNetwork]) -> Peer:
    """No endpoint: WireGuard learns it from the client's first packet, and follows the client to each new stream."""
    own = {ip_network(address) for address in client.addresses}
    return Peer(client.public_key, frozenset(own | set(carries)), preshared_key=client.preshared_key)


def _left(adopted: Sequence[Peer], peers: list[Peer]) -> list[Peer]:
    """Peers found at start and not yet claimed by a client, without the prefixes that others hold now."""
    if not adopted:
        return []
    keys = {peer.public_key for peer in peers}
    taken = {network for peer in peers for network in peer.allowed_ips}
    left = [replace(p, allowed_ips=p.allowed_ips - taken, endpoint=None) for p in adopted if p.public_key not in keys]
    return [peer for peer in left if peer.allowed_ips]
