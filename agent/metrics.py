"""A role's status as Prometheus metrics.

Names are `rhizome_*`, units are base units, and labels are bounded: fixed words, transports, and a limited number of peers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.health import canary_is_fresh
from agent.identity import Role
from agent.pulse import Cause
from agent.status import Counts, EgressHealth, PathHealth, PeerHealth, PoolHealth, RoleStatus, Verdict

CONTENT_TYPE = CONTENT_TYPE_LATEST

#: With more peers than this there are no series per peer, only their number: Prometheus pays for every label value.
PEER_SERIES_MAX = 256

#: All words of a seed server's counters whose first event an alert asks for.
PREFIX_REASONS = ("default-route", "not-a-host", "outside", "protected", "role", "taken", "too-small")
_RESULTS = ("done", "forced", "failed")
_CAUSES = tuple(cause.value for cause in Cause if cause is not Cause.NONE)


def exposition(status: RoleStatus) -> bytes:
    """The metrics page: the status, and what the kernel says of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class StatusCollector(Collector):
    """Prometheus families made of one status."""

    def __init__(self, status: RoleStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        info = {"version": status.version, "role": status.role, "control_plane": status.control_plane}
        info |= {"backend": status.backend, "ifname": status.ifname}
        yield _gauge("build_info", "What runs here.", tuple(info), [(tuple(info.values()), 1)])
        yield _gauge("ready", "1 when packets cross the tunnel.", (), [((), status.verdict.ready)])
        verdicts = [((verdict.value,), verdict is status.verdict) for verdict in Verdict]
        yield _gauge("verdict", "1 for the verdict that stands.", ("verdict",), verdicts)
        yield _gauge("verdict_age_seconds", "How long the verdict stands.", (), [((), status.since_s)])
        yield from _paths(status.paths)
        yield from _peers(status.peers)
        carried = sum(bool(item.carrier) for item in status.ranges)
        rows = [(("carried",), carried), (("uncarried",), len(status.ranges) - carried)]
        yield _gauge("ranges", "Declared ranges of the shoot.", ("state",), rows)
        counters = status.counters
        for name, help, label, counts in (
            (
                "prefixes_refused",
                "Prefixes that a client may not carry.",
                "reason",
                _with_zeros(PREFIX_REASONS, status, counters.refused),
            ),
            ("clients_refused", "Times that a client was not let in.", "reason", counters.not_let_in),
            ("connections_turned_away", "Connections that became no stream.", "cause", counters.turned_away),
            ("repairs", "Changes made to the host, by kind of step.", "step", counters.repairs),
            (
                "wireguard_key_rotations",
                "Rotations of WireGuard's own keys.",
                "result",
                _with_zeros(_RESULTS, status, counters.rotations),
            ),
            (
                "failovers",
                "Clients that lost what others could carry too.",
                "cause",
                _with_zeros(_CAUSES, status, counters.failovers),
            ),
        ):
            yield _counter(name, help, (label,), [((word,), count) for word, count in counts])
        yield _counter(
            "prefix_moves", "Shared prefixes that went from one client to another.", (), [((), counters.moves)]
        )
        yield _counter("path_moves", "Changes from one path to the other.", (), [((), counters.path_moves)])
        yield _counter("identity_conflicts", "Identities at work in two places.", (), [((), counters.conflicts)])
        yield _counter("reconnects", "Streams that were made after the first.", (), [((), counters.reconnects)])
        for name, help, value in (
            ("certificate_expires_in_seconds", "Until our certificate ends.", status.certificate_expires_in_s),
            ("grant_expires_in_seconds", "Until the server's grant ends.", status.grant_expires_in_s),
            ("token_expires_in_seconds", "Until our token ends.", status.token_expires_in_s),
            ("token_lifetime_seconds", "For how long our token was issued.", status.token_lifetime_s),
            ("wireguard_key_age_seconds", "Age of WireGuard's own key.", status.key_age_s),
            ("wireguard_key_rotating", "1 while there are two of them.", float(bool(status.rotation))),
        ):
            yield _gauge(name, help, (), [((), value)])
        if status.egress is not None:
            yield from _egress(status.egress)
        yield from _pools(status.pools)


Rows = Iterable[tuple[tuple[str, ...], float | None]]


def _with_zeros(words: Iterable[str], status: RoleStatus, counts: Counts) -> Counts:
    """Of a seed server with those of which there were none: Prometheus sees no increase in a series that begins with 1."""
    known = words if status.role == Role.SEED_SERVER.value else ()
    return tuple((dict.fromkeys(known, 0) | dict(counts)).items())


def _gauge(name: str, help: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    return _fill(GaugeMetricFamily(f"rhizome_{name}", help, labels=labels), rows)


def _counter(name: str, help: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    return _fill(CounterMetricFamily(f"rhizome_{name}", help, labels=labels), rows)


def _fill(family: GaugeMetricFamily | CounterMetricFamily, rows: Rows) -> Metric:
    """What is None has no sample. A label set that comes twice would make the whole page invalid: the last one stays."""
    for labels, value in dict(rows).items():
        if value is not None:
            family.add_metric(labels, float(value))
    return family


def _paths(paths: tuple[PathHealth, ...]) -> Iterator[Metric]:
    rows = [((path.transport, path.via), path.state == "up") for path in paths]
    yield _gauge("path_up", "1 for a path that works.", ("transport", "via"), rows)
    used = [((path.transport,), path.in_use) for path in paths]
    yield _gauge("path_in_use", "1 for a path that packets are sent by.", ("transport",), used)
    for name, help, attribute in (
        ("path_rtt_seconds", "Round trip on the path.", "rtt_s"),
        ("path_handshake_age_seconds", "Since the last WireGuard handshake.", "handshake_age_s"),
        ("path_mtu_bytes", "MTU of the path's device.", "mtu_bytes"),
    ):
        yield _gauge(name, help, ("transport",), [((path.transport,), getattr(path, attribute)) for path in paths])
    for name, help, attribute in (
        ("path_receive_bytes", "Bytes received.", "rx_bytes"),
        ("path_transmit_bytes", "Bytes sent.", "tx_bytes"),
    ):
        yield _counter(name, help, ("transport",), [((path.transport,), getattr(path, attribute)) for path in paths])
    drops = [((path.transport, reason), count) for path in paths for reason, count in path.drops]
    yield _counter("path_drops", "Packets dropped, by reason.", ("transport", "reason"), drops)


def _peers(peers: tuple[PeerHealth, ...]) -> Iterator[Metric]:
    answering = sum(canary_is_fresh(peer.canary_age_s) for peer in peers)
    rows = [(("answering",), answering), (("silent",), len(peers) - answering)]
    yield _gauge("peers", "Peers by whether a canary came back from them a moment ago.", ("state",), rows)
    standings = Counter(peer.standing for peer in peers if peer.standing)
    if standings:
        rows = [((word,), standings[word]) for word in ("well", "unproven", "lost")]
        yield _gauge("clients", "Clients by whether they are relied on for shared prefixes.", ("standing",), rows)
    if len(peers) > PEER_SERIES_MAX:
        return
    for name, help, attribute in (
        ("peer_canary_age_seconds", "Since a canary came back.", "canary_age_s"),
        ("peer_canary_rtt_seconds", "Round trip of the last canary.", "rtt_s"),
        ("peer_handshake_age_seconds", "Since the last WireGuard handshake.", "handshake_age_s"),
    ):
        yield _gauge(name, help, ("peer",), [((peer.name,), getattr(peer, attribute)) for peer in peers])
    prefixes = [((peer.name,), len(peer.prefixes)) for peer in peers]
    yield _gauge("peer_prefixes", "Prefixes that the peer carries.", ("peer",), prefixes)
    for name, help, attribute in (
        ("peer_receive_bytes", "Bytes received from the peer.", "rx_bytes"),
        ("peer_transmit_bytes", "Bytes sent to the peer.", "tx_bytes"),
    ):
        yield _counter(name, help, ("peer",), [((peer.name,), getattr(peer, attribute)) for peer in peers])


def _pools(pools: tuple[PoolHealth, ...]) -> Iterator[Metric]:
    for name, help in (
        ("size", "Tunnel addresses that can be given in all."),
        ("used", "Tunnel addresses that are held."),
        ("quarantined", "Tunnel addresses that were given back a moment ago and rest."),
        ("orphaned", "Tunnel addresses kept from before the pool was what it is now."),
    ):
        yield _gauge(f"ipam_pool_{name}", help, ("pool",), [((pool.network,), getattr(pool, name)) for pool in pools])


def _egress(egress: EgressHealth) -> Iterator[Metric]:
    rows: Rows = [(("open",), egress.open), (("head",), egress.heads)]
    yield _gauge(
        "egress_connections", "Connections of the egress proxy, and those without a request yet.", ("state",), rows
    )
    dials = [(tuple(word.split(" ", 1)), count) for word, count in egress.dials]
    yield _counter("egress_dials", "Requests to the egress proxy, by how far they came.", ("stage", "result"), dials)
    sums = [(("up",), egress.up_bytes), (("down",), egress.down_bytes)]
    yield _counter("egress_bytes", "Bytes into the shoot (up) and out of it.", ("direction",), sums)
    family = HistogramMetricFamily("rhizome_egress_dial_seconds", "From a request to its tunnel, successes only.")
    total, buckets = 0, []
    for bound, count in egress.latency:
        total += count
        buckets.append(("+Inf" if bound == "inf" else bound, float(total)))
    if buckets:
        family.add_metric((), buckets, egress.latency_sum_s)
    yield family
