"""What can be set on a seed server. The table is the documentation: see docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import ClassVar

from agent.generations import Names
from agent.kinds import (
    ADDRESS,
    BOOL,
    CIDR,
    DESTINATION,
    IFNAME,
    LISTEN,
    MODE,
    NAMESPACED,
    OWNER,
    PATH,
    PORT,
    SECRET_PATH,
    HostPort,
    Namespaced,
    integer,
    number,
)
from agent.model import IPAddress, IPNetwork
from agent.role_settings import IDENTITY, NETWORKS, OPERATION, TRANSPORT, TUNNEL
from agent.settings import Rule, setting, settings
from seed_server.access import ACCESS, Access
from seed_server.token_settings import TOKENS, TokenSettings

EGRESS = "Egress proxy"

#: A grant is never longer, so a revoked client is out within the hour.
GRANT_LIFETIME_MAX_S = 3600
#: A handshake is made every 120 s, and tried for 90 s (WireGuard whitepaper 6.1); some may be lost.
ONCE_SILENCE_MIN_S, ONCE_SILENCE_MAX_S = 240, 86400

#: Never a shoot's: whoever routes these to a shoot hands it traffic of the seed's own (RFC 6890, RFC 5735 section 4).
SPECIAL_NETWORKS = tuple(
    ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/127", "fe80::/10", "ff00::/8")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(TokenSettings):
    """Settings of one seed server, which belongs to one control plane."""

    PROGRAM: ClassVar[str] = "rhizome-seed-server"
    ABOUT: ClassVar[str] = (
        "Accepts the shoot clients of one control plane, assigns them addresses and carries packets to them."
    )
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "rhizome-seed-server --control-plane shoot--garden--a "
        "--tls-ca pki/ca.crt --tls-certificate pki/server.crt --tls-key pki/server.key "
        "--node-networks 10.250.0.0/16 --pod-networks 100.96.0.0/11 --service-networks 100.64.0.0/13",
        "rhizome-seed-server --config examples/seed-server.toml --print-config",
    )

    GROUPS: ClassVar[tuple[str, ...]] = (IDENTITY, TOKENS, TRANSPORT, NETWORKS, EGRESS, TUNNEL, OPERATION)

    ifname: str = setting(IFNAME, "name of the WireGuard device", group=TUNNEL, default="rz-seed")
    persistent_keepalive_s: int = setting(
        integer(0, 65535, "SECONDS"),
        "how often WireGuard speaks up on an idle tunnel; 0: never (the stream has its own liveness)",
        group=TUNNEL,
        default=0,
        unit="seconds",
    )

    tls_certificate: Path = setting(PATH, "PEM file with our certificate chain", group=IDENTITY, file=True)
    tls_key: Path = setting(SECRET_PATH, "PEM file with the certificate's private key", group=IDENTITY, file=True)

    deny_file: Path | None = setting(
        PATH,
        "list of identities and WireGuard public keys that are let in no more, whatever they show, which the command "
        "revoke writes; read again when it changes; empty: none",
        group=IDENTITY,
        default=None,
        file=True,
    )

    listen: tuple[HostPort, ...] = settings(
        LISTEN, "addresses of the TLS listener", group=TRANSPORT, default=(HostPort("::", 8443),)
    )
    max_streams: int = setting(integer(1, 100_000), "streams that may be up at once", group=TRANSPORT, default=10_000)
    max_unauthenticated: int = setting(
        integer(1, 10_000), "connections that may be in the middle of their handshake", group=TRANSPORT, default=64
    )

    tunnel_networks: tuple[IPNetwork, ...] = settings(
        CIDR,
        "where clients get their tunnel addresses from, at most one network per address family",
        group=NETWORKS,
        default=(ip_network("192.168.128.0/17"), ip_network("fd8f:6d53:b97a:1::/96")),
    )
    node_networks: tuple[IPNetwork, ...] = settings(CIDR, "the shoot's nodes", group=NETWORKS)
    pod_networks: tuple[IPNetwork, ...] = settings(CIDR, "the shoot's pods", group=NETWORKS)
    service_networks: tuple[IPNetwork, ...] = settings(CIDR, "the shoot's services", group=NETWORKS)
    seed_networks: tuple[IPNetwork, ...] = settings(
        CIDR, "the seed's own nodes, pods and services; nothing of them is ever routed to the shoot", group=NETWORKS
    )

    shared_nodes: bool = setting(
        BOOL,
        "let clients that offer a whole node range (`node_cidrs`) carry the nodes in it that have no client of their own",
        group=NETWORKS,
        default=False,
    )
    sidecar_ranges: tuple[Access, ...] = settings(
        ACCESS,
        "which sidecar may reach what: its name, in which * is any text, and all, nodes, pods, services or a network; "
        "empty: every sidecar reaches everything; otherwise one that is not named here is not let in",
        group=NETWORKS,
    )

    direct_endpoints: tuple[HostPort, ...] = settings(
        LISTEN,
        "addresses and ports at which sidecars reach the UDP port of the direct device, in order of preference, such as the "
        "cluster IP of a Service; empty: sidecars use the stream only",
        group=TRANSPORT,
    )
    direct_port: int = setting(PORT, "UDP port of the direct device", group=TUNNEL, default=51821)
    direct_ifname: str = setting(IFNAME, "name of the direct device", group=TUNNEL, default="rz-seed-direct")
    direct_secret: Path | None = setting(
        SECRET_PATH,
        "file with at least 32 secret bytes that the keys of the direct device are derived from, so that they stay the same when "
        "the server starts anew; empty: they are derived from tls_key",
        group=TUNNEL,
        default=None,
        file=True,
    )

    egress_listen: tuple[HostPort, ...] = settings(
        LISTEN,
        "addresses of the egress proxy for kube-apiserver, over TLS with client certificates, such as [::]:9443; empty: none",
        group=EGRESS,
    )
    egress_socket: Path | None = setting(
        PATH, "Unix socket of the egress proxy, without TLS; empty: none", group=EGRESS, default=None
    )
    egress_socket_owner: str | None = setting(
        OWNER, "owner of the Unix socket; empty: the user and group of this process", group=EGRESS, default=None
    )
    egress_socket_mode: int = setting(
        MODE, "permissions of the Unix socket; whoever may write to it may use it", group=EGRESS, default=0o660
    )
    egress_client_ca: Path | None = setting(
        PATH,
        "PEM file with the CA of kube-apiserver's client certificates; every certificate under it may use the proxy; empty: no TLS listener",
        group=EGRESS,
        default=None,
        file=True,
    )
    egress_tls_certificate: Path | None = setting(
        PATH,
        "PEM file with the proxy's certificate chain; empty: tls_certificate",
        group=EGRESS,
        default=None,
        file=True,
    )
    egress_tls_key: Path | None = setting(
        SECRET_PATH,
        "PEM file with that certificate's private key; empty: tls_key",
        group=EGRESS,
        default=None,
        file=True,
    )
    egress_direct: tuple[str, ...] = settings(
        DESTINATION,
        "networks and names that the proxy dials in the seed, and not through the tunnel",
        group=EGRESS,
    )
    egress_dns: tuple[IPAddress, ...] = settings(
        ADDRESS,
        "the shoot's name servers, such as its cluster DNS, asked through the tunnel; empty: names are refused",
        group=EGRESS,
    )
    egress_dial_timeout_s: float = setting(
        number(0.1, 60, "SECONDS"),
        "how long name and connection may take together; by default the answer is there within five seconds",
        group=EGRESS,
        default=4.5,
        unit="seconds",
    )
    egress_max_connections: int = setting(
        integer(1, 100_000), "connections through the proxy at once", group=EGRESS, default=4096
    )
    egress_max_heads: int = setting(
        integer(1, 100_000),
        "connections that have not sent their request yet, for each kind of socket",
        group=EGRESS,
        default=256,
    )

    audit_log: Path | None = setting(
        PATH,
        "file for one JSON line per decision about clients, such as /dev/stdout (docs/audit.md); empty: none",
        group=OPERATION,
        default=None,
    )
    ipam_file: Path | None = setting(
        PATH,
        "file that remembers who has which tunnel address; empty: memory only",
        group=OPERATION,
        default=Path("/var/lib/rhizome/addresses.log"),
        optional=True,
    )
    ipam_configmaps: Namespaced | None = setting(
        NAMESPACED,
        "ledger of tunnel addresses in ConfigMaps of Kubernetes, which needs the `kubernetes` extra and the right to get, list, create and "
        "update ConfigMaps of that namespace; empty: `ipam_file`",
        group=OPERATION,
        default=None,
    )
    grant_lifetime_s: int = setting(
        integer(10, GRANT_LIFETIME_MAX_S, "SECONDS"),
        "how long a client may stay without renewing its grant",
        group=OPERATION,
        default=GRANT_LIFETIME_MAX_S,
        unit="seconds",
    )

    psk_lifetime_s: int = setting(
        integer(10, 366 * 86400, "SECONDS"),
        "age at which a client's preshared key is replaced; its session goes on (`rhizome-agent rotate` does it at once)",
        group=OPERATION,
        default=86400,
        unit="seconds",
    )
    wireguard_key_lifetime_s: int = setting(
        integer(0, 366 * 86400, "SECONDS"),
        "age at which WireGuard's own keys are replaced; 0: never (`rhizome-agent rotate --wireguard-keys` does it at once)",
        group=OPERATION,
        default=30 * 86400,
        unit="seconds",
    )
    once_file: Path | None = setting(
        PATH,
        "file that remembers sidecars that ran with --once, without any secret; empty: none is let in",
        group=OPERATION,
        default=Path("/var/lib/rhizome/once.json"),
        optional=True,
    )
    once_silence_s: int = setting(
        integer(ONCE_SILENCE_MIN_S, ONCE_SILENCE_MAX_S, "SECONDS"),
        "how long such a sidecar may be without a handshake before it is forgotten; one that lives makes one every two minutes",
        group=OPERATION,
        default=3600,
        unit="seconds",
    )

    def shoot_networks(self) -> tuple[IPNetwork, ...]:
        """Nodes, pods and services of the shoot."""
        return self.node_networks + self.pod_networks + self.service_networks

    def check(self) -> Iterator[Rule]:
        yield from TokenSettings.check(self)
        if not self.listen:
            yield Rule(("listen",), "empty: nobody could connect; give at least one address")
        if not self.tunnel_networks:
            yield Rule(("tunnel_networks",), "empty: clients could get no address; leave it out to take the default")
        if len({network.version for network in self.tunnel_networks}) < len(self.tunnel_networks):
            yield Rule(("tunnel_networks",), "two networks of one address family: leave one")
        if not self.shoot_networks():
            yield Rule(
                ("node_networks", "pod_networks", "service_networks"), "all empty: nothing could be reached; give one"
            )
        yield from self._check_shoot_networks()
        yield from self._check_sidecars()
        yield from self._check_direct()
        yield from self._check_egress()
        for theirs in self.seed_networks:
            for ours in self.tunnel_networks:
                if ours.overlaps(theirs):
                    text = f"{ours} overlaps {theirs}: choose another tunnel network"
                    yield Rule(("tunnel_networks", "seed_networks"), text)

    def _check_sidecars(self) -> Iterator[Rule]:
        for rule in self.sidecar_ranges:
            target = rule.target
            if not isinstance(target, str) and not any(
                target.version == network.version and target.subnet_of(network)  # type: ignore[arg-type]
                for network in self.shoot_networks()
            ):
                yield Rule(("sidecar_ranges",), f"{rule}: {target} is in none of the shoot's ranges: declare it first")

    def _check_direct(self) -> Iterator[Rule]:
        names = Names(self.ifname, self.wireguard_port)
        if self.direct_ifname in names.both:
            yield Rule(
                ("ifname", "direct_ifname"), f"two devices need two names, and {' and '.join(names.both)} are one's"
            )
        if self.direct_endpoints and self.direct_port in (ports := [names.port_of(name) for name in names.both]):
            yield Rule(("wireguard_port", "direct_port"), f"two devices need two ports, and {ports} are one's")
        for endpoint in self.direct_endpoints:
            if not endpoint.port or ip_address(endpoint.host).is_unspecified:
                yield Rule(
                    ("direct_endpoints",), f"{endpoint} is nowhere: name an address and a port that sidecars can reach"
                )

    def _check_egress(self) -> Iterator[Rule]:
        if self.egress_listen and self.egress_client_ca is None:
            yield Rule(
                ("egress_listen", "egress_client_ca"),
                "without a CA of its clients nobody could be told from anybody: name kube-apiserver's",
            )
        if (self.egress_tls_certificate is None) != (self.egress_tls_key is None):
            yield Rule(("egress_tls_certificate", "egress_tls_key"), "one without the other: give both or none")
        if self.egress_socket is not None and not self.egress_socket.is_absolute():
            yield Rule(("egress_socket",), f"{self.egress_socket} must be an absolute path")
        for server in self.egress_dns:
            if not any(server.version == n.version and server in n for n in self.shoot_networks()):
                yield Rule(("egress_dns",), f"{server} is in none of the shoot's ranges: name the shoot's own DNS")
        for text in self.egress_direct:
            if "/" not in text:
                continue
            network = ip_network(text)
            for special in SPECIAL_NETWORKS:
                if network.prefixlen and network.overlaps(special):
                    yield Rule(("egress_direct",), f"{network} overlaps {special}, which is never dialled: remove it")
            if not network.prefixlen:
                yield Rule(("egress_direct",), f"{network} is everything: name what has to be reached in the seed")
            for theirs in self.shoot_networks():
                if network.overlaps(theirs):
                    yield Rule(("egress_direct",), f"{network} overlaps {theirs}, which is the shoot's: it is either")

    def _check_shoot_networks(self) -> Iterator[Rule]:
        for name in ("node_networks", "pod_networks", "service_networks"):
            networks: tuple[IPNetwork, ...] = getattr(self, name)
            for network in networks:
                if network.prefixlen == 0:
                    yield Rule((name,), f"{network} is everything: name the shoot's ranges")
                    continue
                for special in SPECIAL_NETWORKS:
                    if network.overlaps(special):
                        yield Rule((name,), f"{network} overlaps {special}, which is no shoot's: remove it")
                for other in ("tunnel_networks", "seed_networks"):
                    for taken in getattr(self, other):
                        if network.overlaps(taken):
                            text = f"{network} overlaps {taken}: the ranges of shoot, seed and tunnel must be disjoint"
                            yield Rule((name, other), text)
