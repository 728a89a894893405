"""From a grant to a control-plane pod: its device, and routes to what it may reach of the shoot. Pure.

There may be two devices, one for each path to the server, with the same addresses and the same allowed-ips. Nothing may begin in the tunnel and end in this pod: what comes out of it are answers, and the server's canary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network

from agent.client.role import KEEPALIVE_S, DirectView, View, beside, beside_routes, beside_sysctls, server_key
from agent.firewall import Door, Firewall, render
from agent.messages import DIRECT, STREAM, Grant
from agent.model import Device, IPNetwork, Peer, Route, Tunnel

#: Metrics of the routes to the shoot: by the stream always, and by the direct device, which is preferred, while that works. A
#: device that vanishes takes its routes along, and the others are there at once.
ACTIVE, STANDBY = 10, 20


def reachable(grant: Grant) -> tuple[IPNetwork, ...]:
    """The server's own addresses in the tunnel, whose canary is answered, and the shoot's ranges. Not the addresses of other
    clients: a sidecar has nothing to say to them."""
    direct = grant.direct.servers if grant.direct is not None else ()
    return tuple(dict.fromkeys((*map(ip_network, grant.servers), *map(ip_network, direct), *grant.routes)))


@dataclass(frozen=True, slots=True)
class SidecarRole:
    """A control-plane pod as `agent.client.role.ClientRole`."""

    def routed(self, grant: Grant) -> tuple[IPNetwork, ...]:
        return reachable(grant)

    def tunnel(self, device: Device, view: View) -> Tunnel:
        grant = view.grant
        second = (view.direct.device,) if view.direct is not None else ()
        streams = (device, view.beside.device) if view.beside is not None else (device,)
        ports = frozenset(each.listen_port for each in streams if each.listen_port is not None)
        if grant is None:
            rules = _rules((*streams, *second), None, (), local_ports=ports)
            device, routes = (device, frozenset[Route]()) if view.ended is None else _dead_end(device, view.ended, view)
            return Tunnel((device, *second), routes, rules)
        allowed = tuple(network for network in reachable(grant) if network not in view.refused)
        shoot = [network for network in allowed if network in grant.routes]
        servers = _servers(grant, view)
        device = _equip(device, grant, _peers(grant, view, (*servers[STREAM], *shoot)))
        routes = _routes(device, grant, servers[STREAM], 0) | _routes(device, grant, shoot, STANDBY)
        other = beside(view, device)
        routes |= beside_routes(other, routes, device)
        if view.direct is not None:
            direct = _equip(view.direct.device, grant, _direct_peers(view.direct, grant, (*servers[DIRECT], *shoot)))
            second = (direct,)
            routes |= _routes(direct, grant, servers[DIRECT], 0)
            if view.direct.in_use and direct.peers:
                routes |= _routes(direct, grant, shoot, ACTIVE)
        networks = (*servers[STREAM], *servers[DIRECT], *shoot)
        rules = _rules((device, *streams[1:], *second), grant, networks, local_ports=ports)
        return Tunnel((device, *other, *second), routes, rules, beside_sysctls(view, other))


def _dead_end(device: Device, ended: Grant, view: View) -> tuple[Device, frozenset[Route]]:
    """The device without a peer, and still the routes of a grant that has ended: what this pod says to the shoot must not go by
    the pod's own way out, where somebody else may have the same address."""
    device = _equip(device, ended, frozenset())
    return device, _routes(device, ended, [n for n in ended.routes if n not in view.refused], STANDBY)


def _rules(
    devices: tuple[Device, ...],
    grant: Grant | None,
    networks: tuple[IPNetwork, ...],
    *,
    local_ports: frozenset[int] = frozenset(),
    doors: frozenset[Door] = frozenset(),
) -> str:
    """Only the server may begin something here, and only at our own tunnel address: its canary."""
    own = frozenset(map(ip_network, grant.addresses)) if grant else frozenset[IPNetwork]()
    shoot = frozenset(grant.routes) if grant else frozenset[IPNetwork]()
    return render(
        Firewall(
            devices=frozenset(device.ifname for device in devices),
            sources=frozenset(networks),
            initiators=frozenset(networks) - shoot,
            destinations=own,
            local_ports=local_ports,
            mtu_bytes=min(device.mtu_bytes for device in devices),
            doors=doors,
        )
    )


def without_daemon(view: DirectView, grant: Grant, refused: frozenset[IPNetwork]) -> Tunnel:
    """The host of a sidecar that is going to leave: the direct device alone. Nobody will follow a server that moves, so packets
    for its port are taken from the granted endpoints only: whoever else holds the server's key cannot lead it away from them."""
    servers, endpoints = (grant.direct.servers, grant.direct.endpoints) if grant.direct else ((), ())
    own = [network for network in map(ip_network, servers) if network not in refused]
    shoot = [network for network in grant.routes if network not in refused]
    device = _equip(view.device, grant, _direct_peers(view, grant, (*own, *shoot)))
    routes = _routes(device, grant, own, 0)
    if view.in_use:
        routes |= _routes(device, grant, shoot, ACTIVE)
    port = view.device.listen_port
    sources = frozenset(ip_network(endpoint.address) for endpoint in endpoints)
    doors = frozenset({Door(port, sources)} if port is not None else ())
    return Tunnel((device,), routes, _rules((device,), grant, (*own, *shoot), doors=doors))


def _servers(grant: Grant, view: View) -> dict[str, tuple[IPNetwork, ...]]:
    """The server's own addresses, by path: each path's canary comes from one of its own, and is answered on that path."""
    found = {STREAM: grant.servers, DIRECT: ()}
    if view.direct is not None and view.direct.direct is not None:
        found[DIRECT] = view.direct.direct.servers
    return {
        path: tuple(n for n in map(ip_network, addresses) if n not in view.refused) for path, addresses in found.items()
    }


def _equip(device: Device, grant: Grant, peers: frozenset[Peer]) -> Device:
    return replace(
        device,
        mtu_bytes=min(device.mtu_bytes, grant.mtu_bytes),
        addresses=frozenset(ip_interface(f"{a}/{a.max_prefixlen}") for a in grant.addresses),
        peers=peers,
    )


def _routes(device: Device, grant: Grant, networks: Iterable[IPNetwork], metric: int) -> frozenset[Route]:
    source = {address.version: address for address in grant.addresses}
    return frozenset(Route(n, device.ifname, source[n.version], metric) for n in networks if n.version in source)


def _peers(grant: Grant, view: View, networks: tuple[IPNetwork, ...]) -> frozenset[Peer]:
    key = server_key(grant)
    if key is None:
        return frozenset()
    keepalive_s = grant.persistent_keepalive_s or KEEPALIVE_S
    return frozenset({Peer(key, frozenset(networks), view.relay, grant.preshared_key, keepalive_s)})


def _direct_peers(view: DirectView, grant: Grant, networks: tuple[IPNetwork, ...]) -> frozenset[Peer]:
    """The keepalive also keeps the way through NAT and connection tracking open, of a Service's address for one."""
    direct = view.direct
    if direct is None or not direct.endpoints:
        return frozenset()
    keepalive_s = grant.persistent_keepalive_s or KEEPALIVE_S
    return frozenset({Peer(direct.public_key, frozenset(networks), view.endpoint, direct.preshared_key, keepalive_s)})
