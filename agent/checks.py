"""The doctor's checks: one per alert of the charts, with the same id. A sidecar is a client, and has a client's checks."""

from __future__ import annotations

from agent import doctor
from agent.doctor import Check, Rate
from agent.identity import Role
from agent.status import Counts, RoleStatus, Verdict

_MINUTE_S = 60.0


def _failovers(status: RoleStatus) -> Counts:
    return status.counters.failovers


def _moves(status: RoleStatus) -> Counts:
    return (("", status.counters.moves),)


def _refused(status: RoleStatus) -> Counts:
    return status.counters.refused


def _turned_away(status: RoleStatus) -> Counts:
    return status.counters.turned_away


def _repairs(status: RoleStatus) -> Counts:
    return status.counters.repairs


def _reconnects(status: RoleStatus) -> Counts:
    return (("", status.counters.reconnects),)


_DROPS = Rate("packets dropped", doctor.drops, 10 * 5 * _MINUTE_S, 5 * _MINUTE_S)
_REPAIRS = Rate("changes to the host", _repairs, 100, 15 * _MINUTE_S, together=True)

_FOR_DROPS = (
    "Go by the reason: `udp_rcvbuf` is a CPU limit or a busy node, `cap` the path's bandwidth or its loss, "
    "`oversize` an `mtu_bytes` that is larger on the client."
)
_FOR_DESCRIPTORS = (
    "Keep a listing of `/proc/PID/fd`, restart the daemon (the tunnel goes on meanwhile), and report the leak with it."
)

SEED_SERVER = (
    Check(
        "RhizomeTunnelDown",
        "critical",
        doctor.verdict_is(Verdict.DOWN),
        "No client at all: check the proxy in front (does it pass on the SNI or header of this control plane?), then the shoot's nodes.",
    ),
    Check(
        "RhizomeTunnelDegraded",
        "warning",
        doctor.verdict_is(Verdict.DEGRADED),
        "As for RhizomeCanaryFailing or RhizomeRangesUncarried, whichever the cause names.",
    ),
    Check(
        "RhizomeCanaryFailing",
        "warning",
        doctor.silent_peers,
        "Run `rhizome-agent doctor` on the client's node; if the node is gone for good, do nothing: its grant ends within the hour.",
    ),
    Check(
        "RhizomeRangesUncarried",
        "warning",
        doctor.uncarried,
        "Give the clients the range, or take it out of the seed server's settings.",
    ),
    Check(
        "RhizomeHandshakeStale",
        "warning",
        doctor.stale_handshakes,
        "Run `rhizome-agent doctor` on the client's node: where that has a stream and no handshake either, restart its pod; "
        "a new device has a new epoch, and shakes hands at once.",
    ),
    Check(
        "RhizomeFailover",
        "info",
        Rate("failovers", _failovers, 0, 15 * _MINUTE_S, together=True),
        "Find out why the client was lost: a node that was drained, a crash, its network.",
    ),
    Check(
        "RhizomeMovesFlapping",
        "warning",
        Rate("shared prefixes moved", _moves, 20, 30 * _MINUTE_S),
        "Repair or cordon the node whose canaries come and go.",
    ),
    Check(
        "RhizomePoolFilling",
        "warning",
        doctor.pool_over(0.8),
        "Widen `tunnel_networks` (10.0.0.0/24 to 10.0.0.0/23, say; nobody's address changes), or release what belongs to nodes "
        "that will not come back: `rhizome-ipam release KIND/NAMESPACE/NAME/UID`.",
    ),
    Check(
        "RhizomePoolNearlyFull",
        "critical",
        doctor.pool_over(0.95),
        "Widen `tunnel_networks` now (nobody's address changes), or release what belongs to nodes that will not come back: "
        "`rhizome-ipam release KIND/NAMESPACE/NAME/UID`.",
    ),
    Check(
        "RhizomePrefixesRefused",
        "warning",
        Rate("prefixes refused", _refused, 0, 15 * _MINUTE_S),
        "Compare what the client claims with the declared networks; a claim that cannot be explained is that of a compromised node.",
    ),
    Check(
        "RhizomeConnectionsTurnedAway",
        "warning",
        Rate("connections turned away", _turned_away, 0.1 * 5 * _MINUTE_S, 5 * _MINUTE_S),
        "Find out who knocks: a load balancer has to check the health port instead, clients with expired certificates need new ones, "
        "and strangers are kept out by `networkPolicy.tunnelFrom`.",
    ),
    Check(
        "RhizomeIdentityInTwoPlaces",
        "critical",
        doctor.in_two_places,
        "Stop the second one; the first comes back by itself within four minutes.",
    ),
    Check("RhizomeRelayDrops", "warning", _DROPS, _FOR_DROPS),
    Check(
        "RhizomeCertificateExpiring",
        "warning",
        doctor.certificate_is_left,
        "Renew it: cert-manager's events say why it does not; without one, `rhizome-agent pki server`, then replace the Secret.",
    ),
    Check(
        "RhizomeCertificateEnding",
        "critical",
        doctor.certificate_ends,
        "Renew it now: cert-manager's events say why it does not; without one, `rhizome-agent pki server`, then replace the Secret.",
    ),
    Check("RhizomeHostContested", "warning", _REPAIRS, "Find out who else runs in this network namespace."),
    Check("RhizomeDescriptorsHigh", "warning", doctor.descriptors, _FOR_DESCRIPTORS),
    Check(
        "RhizomeEgressFailing",
        "warning",
        doctor.egress_fails,
        "Go by the stage: `policy` is a range that is not declared, `resolve` the shoot's DNS or `egress_dns`, `tunnel` a tunnel that is "
        "down, `dial` a dead webhook or APIService that is asked again and again.",
    ),
    Check(
        "RhizomeKeyRotationFailing",
        "warning",
        doctor.rotations_fail,
        "Repair what the log's line \"WireGuard's key: ...\" (`rotation.failed`) names, then start a rotation: `rhizome-agent rotate --wireguard-keys`.",
    ),
)

CLIENT = (
    Check(
        "RhizomeNodeTunnelDown",
        "critical",
        doctor.verdict_is(Verdict.DOWN),
        "Go by the step that fails: `DNS`, `TCP` and `proxy` are the way out of this node's network, `TLS` is a certificate, the CA or "
        "`server_name`, and a server that refuses says why.",
    ),
    Check(
        "RhizomeNodeTunnelDegraded",
        "warning",
        doctor.verdict_is(Verdict.DEGRADED),
        "Go by the cause: a `sysctl` that is read-only here has to be set on the node, a prefix that is refused is in use on this node, "
        "and another firewall has to let the tunnel's packets pass.",
    ),
    Check(
        "RhizomeNodeHandshakeStale",
        "warning",
        doctor.stale_handshakes,
        "If the stream is up, restart this pod: a new device has a new epoch, and shakes hands at once.",
    ),
    Check("RhizomeNodeRelayDrops", "warning", _DROPS, _FOR_DROPS),
    Check(
        "RhizomeNodeCertificateExpiring",
        "warning",
        doctor.certificate_is_left,
        "Renew it: `rhizome-agent pki client --name NODE`, or whatever else writes the files.",
    ),
    Check(
        "RhizomeNodeCertificateEnding",
        "critical",
        doctor.certificate_ends,
        "Renew it now: `rhizome-agent pki client --name NODE`, or whatever else writes the files.",
    ),
    Check(
        "RhizomeNodeTokenEnding",
        "critical",
        doctor.token_is_left,
        "Make the disk or the kubelet work; the file is read again at each connection, without a restart.",
    ),
    Check(
        "RhizomeNodeHostContested",
        "warning",
        _REPAIRS,
        "Find out who undoes it: `SetFirewall` again and again is a program that flushes all of nftables, `AddRoute` and `AddRule` are "
        "systemd-networkd or NetworkManager, which remove what they do not know.",
    ),
    Check("RhizomeNodeDescriptorsHigh", "warning", doctor.descriptors, _FOR_DESCRIPTORS),
    Check(
        "RhizomeNodeReconnecting",
        "warning",
        Rate("streams made again", _reconnects, 10, 30 * _MINUTE_S),
        "Find out who ends the stream: a proxy that cuts connections needs longer idle and maximum times, and two machines with one "
        "credential throw each other out.",
    ),
    Check(
        "RhizomeNodeGrantExpiring",
        "warning",
        doctor.grant_ends,
        "Find out why the server does not renew it: the stream is away (as for RhizomeNodeTunnelDown), or the server refuses, and the "
        "status has its words.",
    ),
)


def checks_of(role: str) -> tuple[Check, ...]:
    """Of a role by its name in the status."""
    return SEED_SERVER if role == Role.SEED_SERVER.value else CLIENT
