"""What can be set on a sidecar. The table is the documentation: see docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import ClassVar

from agent.generations import Names
from agent.kinds import BOOL, CIDR, IFNAME, LISTEN, PORT, HostPort, number
from agent.model import IPNetwork
from agent.role_settings import NETWORKS, OPERATION, TUNNEL, DialSettings
from agent.settings import Rule, setting, settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(DialSettings):
    """Settings of one sidecar, which runs in the network namespace of one control-plane pod."""

    PROGRAM: ClassVar[str] = "rhizome-agent sidecar"
    ABOUT: ClassVar[str] = (
        "A container beside kube-apiserver, Prometheus or another program of the control plane, to "
        "give the pod that it runs in routes to the shoot's nodes, pods and services, through the seed server."
    )
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "rhizome-agent sidecar --control-plane shoot--garden--a --server vpn-seed-server:8443 --server-name vpn.example "
        "--tls-ca pki/ca.crt --tls-certificate pki/sidecar-kube-apiserver.crt --tls-key pki/sidecar-kube-apiserver.key",
        "rhizome-agent sidecar --config examples/sidecar.toml --print-config",
    )

    ifname: str = setting(IFNAME, "name of the WireGuard device", group=TUNNEL, default="rz-sidecar")
    wireguard_port: int = setting(PORT, "UDP port of the device", group=TUNNEL, default=51878)

    direct: bool = setting(
        BOOL, "reach the server by UDP, without the stream, where it offers that", group=TUNNEL, default=True
    )
    once: bool = setting(
        BOOL,
        "for an init container: set everything up, wait until packets cross, and leave nothing running. Needs WireGuard in the "
        "kernel and a server with `direct_endpoints`, `direct_secret` and `once_file`",
        group=OPERATION,
        default=False,
    )
    once_timeout_s: float = setting(
        number(1, 3600, "SECONDS"),
        "how long `once` waits until packets cross; then it fails",
        group=OPERATION,
        default=60.0,
        unit="seconds",
    )
    direct_ifname: str = setting(
        IFNAME, "name of the WireGuard device of the direct path", group=TUNNEL, default="rz-sidecar-udp"
    )

    protected_networks: tuple[IPNetwork, ...] = settings(
        CIDR,
        "networks that this pod needs and that are never routed into the tunnel, besides its own addresses, gateways, "
        "name servers and API server, which are known; such as the seed's own ranges",
        group=NETWORKS,
    )

    health_listen: HostPort | None = setting(
        LISTEN,
        "address of /healthz, /readyz, /metrics and /status (plain HTTP); empty: none",
        group=OPERATION,
        default=HostPort("127.0.0.1", 9843),
        optional=True,
    )

    def check(self) -> Iterator[Rule]:
        yield from DialSettings.check(self)
        if self.once and not self.direct:
            yield Rule(("once", "direct"), "the stream needs a daemon: only the direct path stays without one")
        names = Names(self.ifname, self.wireguard_port).both
        if self.direct_ifname in names:
            yield Rule(("ifname", "direct_ifname"), f"two devices need two names, and {' and '.join(names)} are one's")
        for network in self.protected_networks:
            if network in (ip_network("0.0.0.0/0"), ip_network("::/0")):
                yield Rule(("protected_networks",), f"{network} is everything: nothing could be routed into the tunnel")
