"""What a seed server is bound to for as long as it runs, derived once from its settings. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agent.firewall import Firewall, render
from agent.messages import LIFETIME_MAX_S
from agent.model import IPAddress, IPNetwork
from seed_server.registry import Policy
from seed_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Charter:
    """`addresses` are the server's own in the tunnel, the first of each tunnel network; `firewall` is the nft table: nothing
    that comes out of the tunnel may begin a connection."""

    policy: Policy
    addresses: tuple[IPAddress, ...]
    tunnel_networks: tuple[IPNetwork, ...]
    ranges: tuple[IPNetwork, ...]
    mtu_bytes: int
    persistent_keepalive_s: int
    firewall: str


def charter(settings: Settings) -> Charter:
    protected = [(network, "the seed's own range") for network in settings.seed_networks]
    protected += [(network, "the tunnel's own network") for network in settings.tunnel_networks]
    return Charter(
        policy=Policy(
            control_plane=settings.control_plane,
            nodes=settings.node_networks,
            pods=settings.pod_networks,
            services=settings.service_networks,
            protected=tuple(protected),
            lifetime_s=min(float(settings.grant_lifetime_s), LIFETIME_MAX_S),
            shared_nodes=settings.shared_nodes,
        ),
        addresses=tuple(network[1] for network in settings.tunnel_networks),
        tunnel_networks=settings.tunnel_networks,
        ranges=tuple(dict.fromkeys(settings.shoot_networks())),
        mtu_bytes=settings.mtu_bytes,
        persistent_keepalive_s=settings.persistent_keepalive_s,
        firewall=render(
            Firewall(
                devices=frozenset({settings.ifname}),
                sources=frozenset(settings.tunnel_networks + settings.shoot_networks()),
                local_ports=frozenset({settings.wireguard_port}),
                mtu_bytes=settings.mtu_bytes,
            )
        ),
    )
