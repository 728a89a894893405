"""From a grant to a shoot node: its device, routes, firewall and forwarding. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network

from agent.client.role import KEEPALIVE_S, View, beside, beside_routes, beside_sysctls, server_key
from agent.firewall import Firewall, render
from agent.messages import Grant
from agent.model import Device, IPAddress, IPNetwork, Peer, Route, Tunnel
from shoot_client.facts import own_addresses
from shoot_client.gateway import forwarded, sysctls


@dataclass(frozen=True, slots=True)
class Node:
    """What is constant on this node while the client runs."""

    masquerade: bool
    masquerade_exempt: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class ShootRole:
    """A shoot node as `agent.client.role.ClientRole`."""

    node: Node

    def routed(self, grant: Grant) -> tuple[IPNetwork, ...]:
        return grant.tunnel_networks

    def tunnel(self, device: Device, view: View) -> Tunnel:
        return tunnel(device, self.node, view, own_addresses(view.offer))


def tunnel(
    device: Device,
    node: Node,
    view: View,
    own: Iterable[IPAddress] = (),
) -> Tunnel:
    """The whole host of a shoot client. `device` comes without addresses and peers; `own` are this node's own addresses.

    Without a grant the device stays, with nothing on it.
    """
    grant = view.grant
    streams = (device, view.beside.device) if view.beside is not None else (device,)
    if grant is None:
        return Tunnel((device,), firewall=_firewall(streams, node, (), ()))
    networks = tuple(n for n in grant.tunnel_networks if n not in view.refused)
    addresses = tuple(a for a in grant.addresses if any(a in n for n in networks))
    key = server_key(grant)
    peers = frozenset[Peer]()
    if key is not None:
        peer = Peer(
            key,
            frozenset(networks),
            endpoint=view.relay,
            preshared_key=grant.preshared_key,
            persistent_keepalive_s=grant.persistent_keepalive_s or KEEPALIVE_S,
        )
        peers = frozenset({peer})
    device = replace(
        device,
        mtu_bytes=min(device.mtu_bytes, grant.mtu_bytes),
        addresses=frozenset(ip_interface(f"{a}/{a.max_prefixlen}") for a in addresses),
        peers=peers,
    )
    source = {address.version: address for address in addresses}
    routes = frozenset(Route(n, device.ifname, source[n.version]) for n in networks if n.version in source)
    other = beside(view, device)
    local = tuple(ip_network(address) for address in addresses)
    return Tunnel(
        (device, *other),
        routes | beside_routes(other, routes, device),
        _firewall((device, *streams[1:]), node, networks, (*grant.carries, *local)),
        sysctls(forwarded(grant.carries, own)) | beside_sysctls(view, other),
    )


def _firewall(
    devices: tuple[Device, ...], node: Node, networks: tuple[IPNetwork, ...], destinations: tuple[IPNetwork, ...]
) -> str:
    """The control plane may open connections to what this node carries, and nobody else may use the tunnel."""
    return render(
        Firewall(
            devices=frozenset(device.ifname for device in devices),
            sources=frozenset(networks),
            initiators=frozenset(networks),
            destinations=frozenset(destinations),
            masquerade=frozenset(destinations) if node.masquerade else frozenset(),
            unmasked=frozenset(node.masquerade_exempt) if node.masquerade else frozenset(),
            local_ports=frozenset(device.listen_port for device in devices if device.listen_port is not None),
            mtu_bytes=devices[0].mtu_bytes,
        )
    )
