"""What a seed server is bound to for as long as it runs, derived once from its settings. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agent.firewall import Door, Firewall
from agent.messages import LIFETIME_MAX_S
from agent.model import IPAddress, IPNetwork
from seed_server.policy import Policy
from seed_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Charter:
    """`addresses` are the server's own in the tunnel, the first of each tunnel network, and `direct_addresses` those of its
    second device, the second of each; `firewall` is what the nft table is
    made of, besides the devices of the stream: nothing that comes out of the tunnel may begin a connection, until sidecars are in."""

    policy: Policy
    addresses: tuple[IPAddress, ...]
    tunnel_networks: tuple[IPNetwork, ...]
    ranges: tuple[IPNetwork, ...]
    mtu_bytes: int
    persistent_keepalive_s: int
    firewall: Firewall
    direct_addresses: tuple[IPAddress, ...] = ()


def charter(settings: Settings, *, no_sidecars: str = "") -> Charter:
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
            access=settings.sidecar_ranges,
            no_sidecars=no_sidecars,
            no_once=_no_once(settings),
            silence_s=float(settings.once_silence_s),
        ),
        addresses=tuple(network[1] for network in settings.tunnel_networks),
        tunnel_networks=settings.tunnel_networks,
        ranges=tuple(dict.fromkeys(settings.shoot_networks())),
        mtu_bytes=settings.mtu_bytes,
        persistent_keepalive_s=settings.persistent_keepalive_s,
        firewall=Firewall(
            devices=frozenset({settings.direct_ifname} if settings.direct_endpoints else ()),
            sources=frozenset(settings.tunnel_networks + settings.shoot_networks()),
            mtu_bytes=settings.mtu_bytes,
            doors=_doors(settings),
        ),
        direct_addresses=tuple(network[2] for network in settings.tunnel_networks),
    )


def _no_once(settings: Settings) -> str:
    """Why a sidecar cannot be kept without its daemon, empty when it can: nobody could tell it of another key or endpoint."""
    if not settings.direct_endpoints:
        return "this server offers no direct path, and a stream needs somebody who keeps it: set direct_endpoints"
    if settings.direct_secret is None:
        return (
            "the keys of this server's direct device are derived from tls_key, and change with it: set direct_secret to a "
            "secret that stays"
        )
    if settings.once_file is None:
        return "this server would forget it when it starts anew: set once_file"
    return ""


def _doors(settings: Settings) -> frozenset[Door]:
    """The direct device is for the seed's own pods, where it is known which those are."""
    if not settings.direct_endpoints or not settings.seed_networks:
        return frozenset()
    return frozenset({Door(settings.direct_port, frozenset(settings.seed_networks))})
