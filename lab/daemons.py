"""The real daemons in the lab: their certificates, their configuration files, and starting and killing them."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from pathlib import Path

from agent.carrier.api import TlsFiles
from agent.identity import Role
from agent.pki import issue, make_ca
from agent.status import SOCKET_SUFFIX, RoleStatus, from_json
from lab import addresses
from lab.namespaces import Machine
from lab.processes import LabError, Process, wait_until

#: A value of a settings table: what TOML can say and the daemons understand.
Value = str | int | float | bool | Sequence[str]

#: The daemons' default device names.
SEED_IFNAME = "rz-seed"
SHOOT_IFNAME = "rz-shoot"
SIDECAR_IFNAME = "rz-sidecar"


def program(name: str) -> str:
    """One of our commands, as installed beside the running interpreter."""
    return str(Path(sys.executable).parent / name)


class Pki:
    """A CA of the lab's control plane and what it issued, made by the code of `rhizome-agent pki`."""

    def __init__(self, directory: Path, control_plane: str = addresses.CONTROL_PLANE) -> None:
        self.directory = directory
        make_ca(directory, control_plane)

    def server(self) -> TlsFiles:
        names = (addresses.SERVER_NAME,)
        ips = (ip_address(addresses.SEED.v4), ip_address(addresses.SEED.v6))
        return issue(self.directory, Role.SEED_SERVER, dns=names, ips=ips).files

    def client(self, name: str) -> TlsFiles:
        return issue(self.directory, Role.SHOOT_CLIENT, name).files

    def sidecar(self, name: str) -> TlsFiles:
        return issue(self.directory, Role.SIDECAR, name).files


def to_toml(settings: Mapping[str, Value]) -> str:
    """A flat TOML table. JSON's strings, numbers, booleans and lists of strings are TOML's too (TOML 1.0)."""
    return "".join(
        f"{name} = {json.dumps(value if isinstance(value, str | int | float) else list(value))}\n"
        for name, value in settings.items()
    )


class Daemon:
    """A daemon on one machine. `command` is its program and, for a sidecar, the sub-command. `settings` may be changed between
    starts."""

    def __init__(self, command: str, machine: Machine, ifname: str, settings: Mapping[str, Value]) -> None:
        self.command = command
        self.machine = machine
        self.settings: dict[str, Value] = dict(settings)
        self.config = machine.directory / f"{command.replace(' ', '-')}.toml"
        # The machine's /run is a directory of the host, so the daemon can be asked from here.
        self._socket = machine.directory / "run" / "rhizome" / f"{ifname}{SOCKET_SUFFIX}"
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        if self._process is None:
            raise LabError(f"{self.command} was never started")
        return self._process

    def start(self, *args: str, env: Mapping[str, str] | None = None) -> Process:
        """Write the configuration and start; does not wait for anything."""
        self.write()
        self._process = self.machine.spawn(self.argv(*args), name=self.config.stem, env=env)
        return self._process

    def argv(self, *args: str) -> list[str]:
        """The command line, for those who start it in their own way."""
        name, *words = self.command.split()
        return [program(name), *words, "--config", str(self.config), *args]

    def write(self) -> None:
        """The configuration file, from `settings`."""
        self.config.write_text(to_toml(self.settings))

    def stop(self) -> int:
        """SIGTERM and its exit code. The data plane keeps running: that is the design."""
        self.process.terminate()
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL to the daemon alone, not to its carrier or its WireGuard."""
        self.process.kill()

    def log(self) -> str:
        return self.process.output()

    def ready(self) -> bool:
        """Whether /readyz says 200. False too when nobody answers."""
        return self._get("/readyz")[0] == 200

    def wait_ready(self, timeout_s: float = 30.0) -> float:
        """Seconds until ready. Raises LabError with the end of the log when the daemon ends or takes too long."""

        def check() -> bool:
            if self.process.exit_code is not None:
                raise LabError(f"{self.command} ended with exit code {self.process.exit_code}\n{self.process.tail()}")
            return self.ready()

        try:
            return wait_until(check, f"{self.command} being ready", timeout_s, every_s=0.05)
        except LabError as exc:
            raise LabError(f"{exc}\n{self.process.tail()}") from exc

    def status(self) -> RoleStatus:
        """What it says about itself. Raises LabError when it does not answer."""
        _, body = self._get("/status")
        if not body:
            raise LabError(f"{self.command}: /status does not answer\n{self.process.tail()}")
        return from_json(json.loads(body))

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, named as there, labels included."""
        code, body = self._get("/metrics")
        if code != 200:
            raise LabError(f"{self.command}: /metrics answered {code}")
        samples = [line.rpartition(" ") for line in body.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}

    def _get(self, path: str) -> tuple[int, str]:
        """Status and body, 0 when there is no answer."""
        connection = _UnixConnection(self._socket)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, HTTPException):
            return 0, ""
        finally:
            connection.close()


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def seed_settings(machine: Machine, tls: TlsFiles) -> dict[str, Value]:
    return _common(tls) | {
        "listen": [f"0.0.0.0:{addresses.SERVER_PORT}", f"[::]:{addresses.SERVER_PORT}"],
        "node_networks": addresses.SHOOT_NODES,
        "pod_networks": addresses.SHOOT_PODS,
        "service_networks": addresses.SHOOT_SERVICES,
        "seed_networks": addresses.SEED_PODS,
        "ipam_file": str(machine.directory / "addresses.log"),
    }


def shoot_settings(index: int, tls: TlsFiles) -> dict[str, Value]:
    node, pods = addresses.node(index), addresses.pod_network(index)
    return _common(tls) | {
        "server": f"{addresses.SERVER_NAME}:{addresses.SERVER_PORT}",
        "node_name": node_name(index),
        "node_addresses": [node.v4, node.v6],
        "pod_cidrs": [pods.v4, pods.v6],
        "service_cidrs": addresses.SHOOT_SERVICES,
    }


def sidecar_settings(tls: TlsFiles) -> dict[str, Value]:
    """Straight to the seed server, as to a Service of the same cluster."""
    return _common(tls) | {
        "server": f"{addresses.SEED.v4}:{addresses.SERVER_PORT}",
        "server_name": addresses.SERVER_NAME,
        "protected_networks": addresses.SEED_PODS,
    }


def node_name(index: int) -> str:
    return f"node-{index}"


def _common(tls: TlsFiles) -> dict[str, Value]:
    return {
        "control_plane": addresses.CONTROL_PLANE,
        "tls_ca": tls.ca,
        "tls_certificate": tls.certificate,
        "tls_key": tls.key,
        "log_format": "text",
    }
