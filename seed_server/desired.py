"""From the registry to the host and to the clients: the desired tunnel, and each client's grant. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network

from agent.firewall import ALL_REACHABLE, Transit, Unreachable, render
from agent.identity import Role
from agent.messages import DIRECT, STREAM, VERSION_MAX, Credential, Direct, Grant
from agent.model import Device, IPNetwork, Peer, PresharedKey, PublicKey, Route, Tunnel
from seed_server.adopted import unclaimed
from seed_server.charter import Charter
from seed_server.registry import Client, Registry

#: Identity text -> the prefixes that this client carries now.
Carries = Mapping[str, tuple[IPNetwork, ...]]

#: What it takes to pass packets on from a sidecar to a client, by IP version.
FORWARDING = {4: ("net.ipv4.ip_forward", "1"), 6: ("net.ipv6.conf.all.forwarding", "1")}

#: Of the routes that only the canary of the direct device takes, which names its device.
STANDBY = 100
#: As much for the stream's devices, while there are two of them.
STANDBYS = 50, 51


class Peers:
    """The peers of clients, made once for as long as neither the client nor what it carries changes."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Client, tuple[IPNetwork, ...], tuple[tuple[str, Peer], ...]]] = {}

    def of(self, registry: Registry, carries: Carries) -> dict[str, list[Peer]]:
        """By the name of our device."""
        made = self._made
        self._made = {}
        found: dict[str, list[Peer]] = defaultdict(list)
        for key, client in registry.clients.items():
            if client.once is not None:
                continue
            carried = carries.get(key, ())
            known = made.get(key)
            if known is None or known[0] is not client or known[1] is not carried:
                known = client, carried, _peers(client, carried)
            self._made[key] = known
            for device, peer in known[2]:
                found[device].append(peer)
        return found


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
    successor: Device | None = None,
    sysctls: frozenset[tuple[str, str]] = frozenset(),
) -> Tunnel:
    """The whole host of a seed server. `device` comes without addresses and peers; so does `successor`, the one with the next
    key, which has the same addresses, and for each client that has come over a peer with the same prefixes; `sysctls` are what
    two devices take here. `unreachable`: what sidecars are refused.

    Every declared range is routed into the tunnel as long as the server runs, whoever carries it: a packet for a shoot that
    nobody carries now ends here, and never leaves by the pod's default route.
    """
    of = (known or Peers()).of(registry, carries)
    streams = [(device, registry.adopted), *([(successor, registry.adopted_next)] if successor is not None else [])]
    devices, found = [], list[Peer]()
    for each, adopted in streams:
        peers = [peer for name, some in of.items() if _leads(name, each, successor) for peer in some]
        peers += unclaimed(adopted, peers)
        found += peers
        addresses = frozenset(ip_interface(f"{a}/{a.max_prefixlen}") for a in charter.addresses)
        devices.append(replace(each, addresses=addresses, peers=frozenset(peers)))
    source = {address.version: address for address in charter.addresses}
    prefixes = charter.tunnel_networks + charter.ranges
    by = dict.fromkeys(prefixes, device.ifname)
    if successor is not None:
        by = _by_device(prefixes, registry, carries, found, device.ifname, successor.ifname)
    routes = {Route(p, ifname, source.get(p.version)) for p, ifname in by.items()}
    if successor is not None:
        for metric, each in zip(STANDBYS, devices, strict=True):
            routes |= {Route(n, each.ifname, source.get(n.version), metric) for n in charter.tunnel_networks}
    if second is not None:
        direct, more = _direct(second, charter, registry)
        devices.append(direct)
        taken = {(route.dst, route.metric) for route in more}
        routes = {route for route in routes if (route.dst, route.metric) not in taken} | more
        found += direct.peers
    transits = frozenset((*_transits(registry), *_adopted_transits(charter, registry, found)))
    hubs = frozenset(each.ifname for each, _ in streams)
    firewall = replace(
        charter.firewall,
        devices=charter.firewall.devices | hubs,
        local_ports=frozenset(each.listen_port for each, _ in streams if each.listen_port is not None),
        hubs=hubs,
        transits=transits,
        unreachable=unreachable if transits else ALL_REACHABLE,
    )
    return Tunnel(
        tuple(devices),
        frozenset(routes),
        render(firewall),
        (forwarding(charter) if transits else frozenset()) | sysctls,
    )


def _leads(name: str, device: Device, successor: Device | None) -> bool:
    """Whether what is known of clients at the device `name` is for this one. Only a successor is told by its name."""
    return (successor is not None and name == successor.ifname) == (device is successor)


def _by_device(
    prefixes: Iterable[IPNetwork],
    registry: Registry,
    carries: Carries,
    peers: Iterable[Peer],
    first: str,
    next_: str,
) -> dict[IPNetwork, str]:
    """Which device leads to what, while there are two: each client's prefixes by the one that it sends by, and what nobody has by
    the one that most is led by at the end. A prefix that the one around it leads the same way needs no route of its own."""
    by: dict[IPNetwork, str] = {}
    for key, client in registry.clients.items():
        if client.once is None:
            ifname = next_ if client.device == next_ else first
            by |= dict.fromkeys((*map(ip_network, client.addresses), *carries.get(key, ())), ifname)
    for peer in peers:
        for network in peer.allowed_ips:  # of those who were found at start, and are not back yet
            if network not in by:
                by[network] = next_ if network in registry.next_routes else first
    rest = next_ if by and first not in by.values() else first
    return _needed(dict.fromkeys(prefixes, rest) | by, frozenset(prefixes))


def _needed(by: dict[IPNetwork, str], always: frozenset[IPNetwork]) -> dict[IPNetwork, str]:
    needed: dict[IPNetwork, str] = {}
    around: list[tuple[int, int, str]] = []  # version, last address, device
    for network in sorted(by, key=lambda n: (n.version, int(n.network_address), n.prefixlen)):
        first, ifname = int(network.network_address), by[network]
        while around and (around[-1][0] != network.version or around[-1][1] < first):
            around.pop()
        if network in always or not around or around[-1][2] != ifname:
            needed[network] = ifname
            around.append((network.version, first | (1 << (network.max_prefixlen - network.prefixlen)) - 1, ifname))
    return needed


def _direct(second: Second, charter: Charter, registry: Registry) -> tuple[Device, set[Route]]:
    """The second device, and routes by it to those who want to be answered by it.

    The canary names its device, and needs a route there even while answers take the other way: one of a high metric.
    """
    ifname = second.device.ifname
    clients = [client for client in registry.clients.values() if client.direct_key is not None]
    peers = [_direct_peer(client, second.preshared_key(client)) for client in clients]
    peers += unclaimed(registry.adopted_direct, peers)
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
    *,
    target: str = "",
    successor: str = "",
) -> Grant:
    """What this client is told. It opens all that it may ever carry: who of several carries a part is decided here alone,
    and changes without a word to any of them. `target` and `successor` as in a Grant."""
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
        target=target,
        successor=successor,
    )


def _peers(client: Client, carries: Iterable[IPNetwork]) -> tuple[tuple[str, Peer], ...]:
    """One for each of our devices where it has something, with the same prefixes: a route decides by which of them it is reached. No
    endpoint: WireGuard learns it from the client's first packet, and follows the client to each new stream."""
    prefixes = frozenset((*map(ip_network, client.addresses), *carries))
    return tuple((leg.device, Peer(leg.public_key, prefixes, preshared_key=leg.preshared_key)) for leg in client.legs)
