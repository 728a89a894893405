"""Grafana's dashboards: one table of panels per side, written as JSON by scripts/charts.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
_POD = 'namespace=~"$namespace",pod=~"$pod"'
_COLUMNS, _ROWS = 24, 7


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph: legend -> PromQL with `{}` where the selector of the pod goes. `width` is of 24."""

    title: str
    unit: str
    queries: dict[str, str]
    width: int = 8
    kind: str = "timeseries"


SEED = (
    Panel("Ready", "bool_yes_no", {"{{pod}}": "rhizome_ready{{{}}}"}, 4, "stat"),
    Panel("Verdict for", "s", {"{{pod}}": "rhizome_verdict_age_seconds{{{}}}"}, 4, "stat"),
    Panel("Certificate ends in", "s", {"{{pod}}": "rhizome_certificate_expires_in_seconds{{{}}}"}, 4, "stat"),
    Panel("Clients", "short", {"{{state}}": "sum by (state) (rhizome_peers{{{}}})"}, 6),
    Panel("Declared ranges", "short", {"{{state}}": "sum by (state) (rhizome_ranges{{{}}})"}, 6),
    Panel(
        "Canary round trip",
        "s",
        {
            "worst": "max(rhizome_peer_canary_rtt_seconds{{{}}})",
            "median": "quantile(0.5, rhizome_peer_canary_rtt_seconds{{{}}})",
        },
    ),
    Panel(
        "Oldest answers and handshakes",
        "s",
        {
            "canary {{peer}}": "topk(5, rhizome_peer_canary_age_seconds{{{}}})",
            "handshake {{peer}}": "topk(5, rhizome_peer_handshake_age_seconds{{{}}})",
        },
    ),
    Panel(
        "Through the tunnel",
        "Bps",
        {
            "from the shoot": "sum(rate(rhizome_peer_receive_bytes_total{{{}}}[5m]))",
            "to the shoot": "sum(rate(rhizome_peer_transmit_bytes_total{{{}}}[5m]))",
        },
    ),
    Panel(
        "Streams' bytes",
        "Bps",
        {
            "in": "sum(rate(rhizome_path_receive_bytes_total{{{}}}[5m]))",
            "out": "sum(rate(rhizome_path_transmit_bytes_total{{{}}}[5m]))",
        },
    ),
    Panel("Stream round trip", "s", {"{{transport}}": "max by (transport) (rhizome_path_rtt_seconds{{{}}})"}),
    Panel("Drops", "pps", {"{{reason}}": "sum by (reason) (rate(rhizome_path_drops_total{{{}}}[5m]))"}),
    Panel(
        "Failovers and moves",
        "short",
        {
            "failover {{cause}}": "sum by (cause) (increase(rhizome_failovers_total{{{}}}[5m]))",
            "moves": "sum(increase(rhizome_prefix_moves_total{{{}}}[5m]))",
        },
    ),
    Panel(
        "Turned away and refused",
        "short",
        {
            "turned away: {{cause}}": "sum by (cause) (increase(rhizome_connections_turned_away_total{{{}}}[5m]))",
            "refused: {{reason}}": "sum by (reason) (increase(rhizome_prefixes_refused_total{{{}}}[5m]))",
            "not let in: {{reason}}": "sum by (reason) (increase(rhizome_clients_refused_total{{{}}}[5m]))",
        },
    ),
    Panel("Changes to the host", "short", {"{{step}}": "sum by (step) (increase(rhizome_repairs_total{{{}}}[5m]))"}),
    Panel(
        "Egress: dials",
        "reqps",
        {"{{stage}} {{result}}": "sum by (stage, result) (rate(rhizome_egress_dials_total{{{}}}[5m]))"},
    ),
    Panel(
        "Egress: time to a tunnel",
        "s",
        {
            "p50": "histogram_quantile(0.5, sum by (le) (rate(rhizome_egress_dial_seconds_bucket{{{}}}[5m])))",
            "p99": "histogram_quantile(0.99, sum by (le) (rate(rhizome_egress_dial_seconds_bucket{{{}}}[5m])))",
        },
    ),
    Panel(
        "Egress: connections and bytes",
        "short",
        {
            "{{state}}": "sum by (state) (rhizome_egress_connections{{{}}})",
            "{{direction}} B/s": "sum by (direction) (rate(rhizome_egress_bytes_total{{{}}}[5m]))",
        },
    ),
    Panel("Age of WireGuard's key", "s", {"{{pod}}": "rhizome_wireguard_key_age_seconds{{{}}}"}, 12),
    Panel(
        "Rotations of WireGuard's keys",
        "short",
        {"{{result}}": "sum by (result) (increase(rhizome_wireguard_key_rotations_total{{{}}}[1h]))"},
        12,
    ),
    Panel("Daemon: memory", "bytes", {"{{pod}}": "process_resident_memory_bytes{{{}}}"}),
    Panel("Daemon: CPU", "percentunit", {"{{pod}}": "rate(process_cpu_seconds_total{{{}}}[5m])"}),
    Panel("Daemon: file descriptors", "short", {"{{pod}}": "process_open_fds{{{}}}"}),
)

SHOOT = (
    Panel("Nodes with a tunnel", "short", {"ready": "sum(rhizome_ready{{{}}})"}, 6, "stat"),
    Panel("Nodes", "short", {"nodes": "count(rhizome_ready{{{}}})"}, 6, "stat"),
    Panel("First certificate to end", "s", {"ends in": "min(rhizome_certificate_expires_in_seconds{{{}}})"}, 6, "stat"),
    Panel("First grant to end", "s", {"ends in": "min(rhizome_grant_expires_in_seconds{{{}}})"}, 6, "stat"),
    Panel("Not ready", "short", {"{{pod}}": "rhizome_ready{{{}}} == 0"}),
    Panel("Path", "short", {"{{pod}} {{via}}": "rhizome_path_up{{{}}}"}),
    Panel("Stream round trip", "s", {"{{pod}}": "topk(10, rhizome_path_rtt_seconds{{{}}})"}),
    Panel(
        "Oldest answers and handshakes",
        "s",
        {
            "canary {{pod}}": "topk(5, rhizome_peer_canary_age_seconds{{{}}})",
            "handshake {{pod}}": "topk(5, rhizome_path_handshake_age_seconds{{{}}})",
        },
    ),
    Panel(
        "Through the tunnel",
        "Bps",
        {
            "in {{pod}}": "topk(10, rate(rhizome_peer_receive_bytes_total{{{}}}[5m]))",
            "out {{pod}}": "topk(10, rate(rhizome_peer_transmit_bytes_total{{{}}}[5m]))",
        },
    ),
    Panel("Drops", "pps", {"{{reason}}": "sum by (reason) (rate(rhizome_path_drops_total{{{}}}[5m]))"}),
    Panel("Streams made again", "short", {"{{pod}}": "topk(10, increase(rhizome_reconnects_total{{{}}}[30m]))"}),
    Panel("Prefixes carried", "short", {"{{pod}}": "rhizome_peer_prefixes{{{}}}"}),
    Panel("Changes to the nodes", "short", {"{{step}}": "sum by (step) (increase(rhizome_repairs_total{{{}}}[5m]))"}),
    Panel("MTU", "bytes", {"{{pod}}": "rhizome_path_mtu_bytes{{{}}}"}),
    Panel("Daemon: memory", "bytes", {"{{pod}}": "topk(10, process_resident_memory_bytes{{{}}})"}),
    Panel("Daemon: CPU", "percentunit", {"{{pod}}": "topk(10, rate(process_cpu_seconds_total{{{}}}[5m]))"}),
)


def dashboard(title: str, uid: str, role: str, panels: tuple[Panel, ...]) -> Json:
    """The dashboard as Grafana imports it. The choice of pods is what has said that it has this role."""
    info = f'rhizome_build_info{{role="{role}"}}'
    return {
        "title": title,
        "uid": uid,
        "tags": ["rhizome"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _choice("namespace", f"label_values({info}, namespace)"),
                _choice("pod", f'label_values(rhizome_build_info{{role="{role}",namespace=~"$namespace"}}, pod)'),
            ]
        },
        "panels": _laid_out(panels),
    }


def _choice(name: str, query: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
    }


def _laid_out(panels: tuple[Panel, ...]) -> list[Json]:
    x = y = 0
    placed = []
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _ROWS
        placed.append(_panel(number, panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": _ROWS}})
        x += panel.width
    return placed


def _panel(number: int, panel: Panel) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query.format(_POD), "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def dashboards() -> dict[str, Json]:
    """By the chart that ships it."""
    return {
        "rhizome-seed-server": dashboard("Rhizome: seed servers", "rhizome-seed-server", "seed-server", SEED),
        "rhizome-shoot-client": dashboard("Rhizome: shoot clients", "rhizome-shoot-client", "shoot-client", SHOOT),
    }
