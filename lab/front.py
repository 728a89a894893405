"""The proxy between shoot and seed in a lab: which kinds there are, and a real one of each, at addresses.PROXY.

An SNI proxy looks at the TLS ClientHello and passes the bytes on; the client dials it as if it were the server. A CONNECT
proxy is asked in HTTP where to go to; Gardener's ingress decides by a header of its own instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import addresses, proxies
from lab.addresses import Family
from lab.namespaces import Machine
from lab.processes import LabError, Process, wait_until
from lab.proxies import Address, Envoy, Running

CONNECT_PORT = 8443
#: What Gardener's shoots send, and how its ingress finds the control plane's service.
HEADER = ("X-Gardener-Destination", "outbound|443||vpn-seed-server.shoot--demo.svc.cluster.local")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of proxy. `settings` is what a shoot client must be told; `words` describe it in the verdict.

    `make` takes a directory, where to listen, and where the seed server is.
    """

    words: str
    port: int
    settings: Mapping[str, list[str]]
    make: Callable[[Path, Address, Address], Running]


class Front:
    """A running proxy of one kind on one machine."""

    def __init__(self, kind: str, machine: Machine, family: Family) -> None:
        self.kind = KINDS[kind]
        self._machine = machine
        listen = (addresses.PROXY[family], self.kind.port)
        server = (addresses.SEED[family], addresses.SERVER_PORT)
        self._argv = self.kind.make(machine.directory / "proxy", listen, server).argv
        self._process: Process | None = None
        self.start()

    def start(self) -> None:
        """Start, and return when it listens."""
        process = self._process = self._machine.spawn(self._argv, name="proxy")

        def listening() -> bool:
            if process.exit_code is not None:
                raise LabError(f"the proxy ended with exit code {process.exit_code}\n{process.tail()}")
            return self._listens()

        wait_until(listening, "the proxy listening", every_s=0.05)

    def kill(self) -> None:
        """SIGKILL: all its connections end."""
        if self._process is None:
            raise LabError("the proxy does not run")
        self._process.kill_group()
        wait_until(lambda: not self._listens(), "the proxy's end")

    def _listens(self) -> bool:
        return bool(self._machine.run(["ss", "-Hltn", f"sport = :{self.kind.port}"]).stdout)


def _envoy_sni(directory: Path, listen: Address, server: Address) -> Running:
    return Envoy(directory).sni(listen, {addresses.SERVER_NAME: server}).run()


def _envoy_connect(directory: Path, listen: Address, server: Address) -> Running:
    return Envoy(directory).connect(listen, {f"{addresses.SERVER_NAME}:{addresses.SERVER_PORT}": server}).run()


def _envoy_connect_header(directory: Path, listen: Address, server: Address) -> Running:
    return Envoy(directory).connect(listen, by_header={HEADER: server}).run()


def _haproxy(directory: Path, listen: Address, server: Address) -> Running:
    return proxies.haproxy(directory, listen, {addresses.SERVER_NAME: server})


def _nginx(directory: Path, listen: Address, server: Address) -> Running:
    return proxies.nginx(directory, listen, {addresses.SERVER_NAME: server})


def _squid(directory: Path, listen: Address, server: Address) -> Running:
    host, port = server
    return proxies.squid(directory, listen, {addresses.SERVER_NAME: host}, [port])


_BY_NAME = {"proxies": [f"{addresses.PROXY_NAME}:{CONNECT_PORT}"]}
_BY_HEADER = _BY_NAME | {"proxy_headers": [": ".join(HEADER)]}
KINDS: Mapping[str, Kind] = {
    "envoy-sni": Kind("Envoy, SNI passthrough", addresses.SERVER_PORT, {}, _envoy_sni),
    "envoy-connect": Kind("Envoy, HTTP CONNECT by name", CONNECT_PORT, _BY_NAME, _envoy_connect),
    "envoy-connect-header": Kind(
        "Envoy, HTTP CONNECT by header as in Gardener", CONNECT_PORT, _BY_HEADER, _envoy_connect_header
    ),
    "haproxy-sni": Kind("HAProxy, SNI passthrough", addresses.SERVER_PORT, {}, _haproxy),
    "nginx-sni": Kind("nginx, SNI passthrough", addresses.SERVER_PORT, {}, _nginx),
    "squid-connect": Kind("Squid, HTTP CONNECT by name", CONNECT_PORT, _BY_NAME, _squid),
}
