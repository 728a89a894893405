"""What can be set on a shoot client. The table is the documentation: see docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agent.carrier.api import Proxy
from agent.kinds import (
    ADDRESS,
    BOOL,
    CIDR,
    HEADER,
    IFNAME,
    LISTEN,
    NAME,
    PATH,
    PORT,
    PROXY,
    SECRET_PATH,
    HostPort,
)
from agent.model import IPAddress, IPNetwork
from agent.role_settings import NETWORKS, OPERATION, TRANSPORT, TUNNEL, DialSettings
from agent.settings import Rule, setting, settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(DialSettings):
    """Settings of one shoot client, which runs on one node."""

    PROGRAM: ClassVar[str] = "rhizome-shoot-client"
    ABOUT: ClassVar[str] = "Dials out to the seed server of this shoot and carries packets to nodes, pods and services."
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "rhizome-shoot-client --control-plane shoot--garden--a --server vpn.example:8443 "
        "--tls-ca pki/ca.crt --tls-certificate pki/client-node-1.crt --tls-key pki/client-node-1.key "
        "--node-addresses 10.250.0.7 --pod-cidrs 100.96.1.0/24",
        "rhizome-shoot-client --config examples/shoot-client-connect.toml --print-config",
    )

    ifname: str = setting(IFNAME, "name of the WireGuard device", group=TUNNEL, default="rz-shoot")
    # Nodes are full of WireGuard on 51820 (wg-quick, Calico, Kilo) and its neighbours (flannel, NetBird, Cilium 51871).
    wireguard_port: int = setting(PORT, "UDP port of the device", group=TUNNEL, default=51877)

    proxies: tuple[HostPort, ...] = settings(
        PROXY, "HTTP CONNECT proxies to go through, nearest first", group=TRANSPORT
    )
    proxy_headers: tuple[tuple[str, str], ...] = settings(
        HEADER, "headers for the CONNECT to the last proxy (the one that routes by them)", group=TRANSPORT
    )
    proxy_credentials_file: Path | None = setting(
        SECRET_PATH,
        "file with one line user:password for the first proxy (the one that guards the way out); empty: none",
        group=TRANSPORT,
        default=None,
        file=True,
    )
    proxy_from_environment: bool = setting(
        BOOL, "without `proxies`, obey HTTPS_PROXY and NO_PROXY", group=TRANSPORT, default=True
    )

    node_name: str | None = setting(
        NAME, "name of this node in logs and status; empty: the host name", group=NETWORKS, default=None
    )
    node_addresses: tuple[IPAddress, ...] = settings(ADDRESS, "addresses of this node that we carry", group=NETWORKS)
    pod_cidrs: tuple[IPNetwork, ...] = settings(CIDR, "pod ranges that we could carry", group=NETWORKS)
    service_cidrs: tuple[IPNetwork, ...] = settings(CIDR, "service ranges that we could carry", group=NETWORKS)
    node_cidrs: tuple[IPNetwork, ...] = settings(
        CIDR,
        "whole node ranges in which we could reach the nodes that have no client (the server must allow it: `shared_nodes`)",
        group=NETWORKS,
    )
    node_object: bool = setting(
        BOOL,
        "ask the shoot's API server for our own Node object and follow it: its internal addresses and pod ranges are added "
        "to what is given here; `node_name` names it",
        group=NETWORKS,
        default=False,
    )
    kubeconfig: Path | None = setting(
        PATH,
        "how to reach that API server; empty: the service account of our pod",
        group=NETWORKS,
        default=None,
        file=True,
    )
    facts_file: Path | None = setting(
        PATH,
        "TOML file with lists node_addresses, pod_cidrs and service_cidrs, read again when it changes; what it says is "
        "added to what is given here; empty: none",
        group=NETWORKS,
        default=None,
    )
    masquerade: bool = setting(
        BOOL, "let packets from the tunnel appear to come from this node", group=NETWORKS, default=True
    )
    masquerade_exempt: tuple[IPNetwork, ...] = settings(
        CIDR,
        "destinations that see the true source instead, an address of the tunnel network, which they must route to this node",
        group=NETWORKS,
    )

    health_listen: HostPort | None = setting(
        LISTEN,
        "address of /healthz, /readyz, /metrics and /status (plain HTTP); empty: none",
        group=OPERATION,
        default=HostPort("127.0.0.1", 9842),
        optional=True,
    )

    def proxy_chain(self) -> tuple[Proxy, ...]:
        """The configured proxies, nearest first. The first gets the credentials, the last the headers."""
        last = len(self.proxies) - 1
        credentials = None if self.proxy_credentials_file is None else str(self.proxy_credentials_file)
        return tuple(
            Proxy(
                proxy.host,
                proxy.port,
                headers=self.proxy_headers if index == last else (),
                credentials_file=credentials if index == 0 else None,
            )
            for index, proxy in enumerate(self.proxies)
        )

    def check(self) -> Iterator[Rule]:
        yield from DialSettings.check(self)
        for name in ("proxy_headers", "proxy_credentials_file"):
            if getattr(self, name) and not self.proxies and not self.proxy_from_environment:
                yield Rule((name, "proxies"), "there is no proxy to send it to: give `proxies`")
        if self.kubeconfig is not None and not self.node_object:
            yield Rule(("kubeconfig", "node_object"), "the API server is asked only with `node_object`")
        for name in ("node_cidrs", "pod_cidrs", "service_cidrs"):
            if any(network.prefixlen == 0 for network in getattr(self, name)):
                yield Rule((name,), "a default route is never carried: name the ranges")
