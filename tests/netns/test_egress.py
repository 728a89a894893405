"""The real seed server's egress proxy, asked by a client that speaks byte for byte what kube-apiserver speaks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from agent.__main__ import main
from agent.carrier.api import TlsFiles
from agent.identity import Role
from agent.pki import issue, make_ca
from lab import addresses
from lab.daemons import Daemon
from lab.faults import kill_programs
from lab.freeze import frozen
from lab.inside import entered
from lab.lab import Lab
from lab.names import Names
from lab.processes import pids_in_network_namespace, wait_until

pytestmark = pytest.mark.netns

OK = b"HTTP/1.1 200 OK\r\n\r\n"
PORT = 9443
FAMILIES: tuple[addresses.Family, addresses.Family] = (4, 6)
NODE_NAME = "node-1.shoot.test"


@dataclass
class Scene:
    lab: Lab
    server: Daemon
    client: Daemon
    tls: TlsFiles
    names: Names

    def unix(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        try:
            sock.connect(str(self.lab.seed.directory / "run" / "rhizome" / "kube-apiserver.sock"))
        except OSError:
            sock.close()
            raise
        return sock

    def secure(self, files: TlsFiles | None = None) -> socket.socket:
        """No SNI for an address and no ALPN, like Go's client."""
        context = ssl.create_default_context(cafile=self.tls.ca)
        client = files or self.tls
        context.load_cert_chain(client.certificate, client.key)
        with entered(self.lab.seed.path):
            sock = socket.create_connection((addresses.SEED.v4, PORT), timeout=10)
        return context.wrap_socket(sock, server_hostname=addresses.SEED.v4)

    def open(self, way: str) -> socket.socket:
        return self.unix() if way == "unix" else self.secure()

    def connect(self, target: str, way: str = "unix") -> socket.socket:
        """A tunnel. The head is all that the first read brings."""
        sock = self.open(way)
        try:
            sock.sendall(head(target))
            answer = sock.recv(65536)
            assert answer == OK, answer
        except BaseException:
            sock.close()
            raise
        return sock

    def refusal(self, target: str, way: str = "unix") -> tuple[int, str, float]:
        """Status, reason and seconds of an answer that is no tunnel; the connection ends behind it."""
        began = time.monotonic()
        with self.open(way) as sock:
            sock.sendall(head(target))
            answer = b""
            while more := sock.recv(65536):
                answer += more
                assert answer != OK, "a tunnel"
        version, status, reason = answer.decode("ascii").removesuffix("\r\n\r\n").split(" ", 2)
        assert version == "HTTP/1.1"
        return int(status), reason, time.monotonic() - began

    def machine(self, target: str, way: str = "unix") -> str:
        """Which machine's web page this is."""
        with self.connect(target, way) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            page = b""
            while more := sock.recv(65536):
                page += more
        return str(json.loads(page.partition(b"\r\n\r\n")[2])["machine"])

    def reaches(self) -> bool:
        with contextlib.suppress(OSError, AssertionError, ValueError):
            return self.machine(at(addresses.pod(1).v4, addresses.HTTP_PORT)) == "pod1"
        return False


def head(target: str) -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("envoy-sni") as lab:
        kube = lab.directory / "kube-pki"
        make_ca(kube, addresses.CONTROL_PLANE)
        proxy = issue(kube, Role.SEED_SERVER, dns=("vpn-seed-server",), ips=[ip_address(addresses.SEED.v4)]).files
        names = Names(lab.pod, tuple(addresses.pod(1)))
        names.set(
            {
                NODE_NAME: [addresses.node(1).v4, addresses.node(1).v6],
                "metadata.evil.test": ["169.254.169.254"],
                "loopback.evil.test": ["127.0.0.1", "::1"],
                "tunnel.evil.test": ["192.168.128.1"],
                "seed.evil.test": [addresses.SEED.v4],
                "mixed.evil.test": ["127.0.0.1", addresses.SEED.v4, addresses.node(1).v4],
            }
        )
        server = lab.seed_server(
            egress_listen=[f"{addresses.SEED.v4}:{PORT}", f"[{addresses.SEED.v6}]:{PORT}"],
            egress_socket="/run/rhizome/kube-apiserver.sock",
            egress_socket_mode="0600",
            egress_client_ca=proxy.ca,
            egress_tls_certificate=proxy.certificate,
            egress_tls_key=proxy.key,
            egress_dns=[addresses.pod(1).v4],
            egress_direct=[f"{addresses.SEED_GATEWAY.v4}/32"],
        )
        client = lab.shoot_client()
        for daemon in (server, client):
            daemon.start()
        for daemon in (client, server):
            daemon.wait_ready()
        tls = issue(kube, Role.SIDECAR, "kube-apiserver").files
        scene = Scene(lab, server, client, tls, names)
        wait_until(scene.reaches, "the egress proxy reaching the pod")
        yield scene


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_node_pod_and_service_answer(scene: Scene, way: str) -> None:
    for target in addresses.targets():
        for family in FAMILIES:
            found = scene.machine(at(target.address[family], target.http_port), way)
            assert found == ("node1" if target.name == "node" else "pod1")


def test_a_name_is_looked_up_in_the_shoot(scene: Scene) -> None:
    assert scene.machine(f"{NODE_NAME}:{addresses.HTTP_PORT}") == "node1"
    assert scene.machine(f"mixed.evil.test:{addresses.HTTP_PORT}") == "node1"
    # dnsmasq, which has nobody to ask, refuses what it does not know.
    status, reason, took_s = scene.refusal("nobody.shoot.test:80")
    assert (status, reason) == (502, f"the shoot's DNS {addresses.pod(1).v4} answered REFUSED for nobody.shoot.test")
    assert took_s < 5.0


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_nothing_but_the_shoot_is_dialled(scene: Scene, way: str) -> None:
    """Something would answer on every address of the seed."""
    bait = scene.lab.seed.spawn(scene.lab.seed.tool("serve", "seed", 8081, 8082, 8083), name=f"bait-{way}")
    bait.wait_for_output("ready")
    tunnel_ends = scene.lab.tunnel_addresses(scene.lab.seed)
    for host in (
        "127.0.0.1",
        "::1",
        *addresses.SEED,
        *tunnel_ends,
        *addresses.PROXY,
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
    ):
        status, reason, _ = scene.refusal(at(host, 8081), way)
        assert status == 403, (host, status, reason)
    for name in ("metadata", "loopback", "tunnel", "seed"):
        status, reason, _ = scene.refusal(f"{name}.evil.test:8081", way)
        assert (status, reason.split(":")[0]) == (403, f"{name}.evil.test")
    bait.terminate()


def test_an_exception_is_dialled_in_the_seed(scene: Scene) -> None:
    status, reason, _ = scene.refusal(f"{addresses.SEED_GATEWAY.v4}:1")
    assert (status, reason) == (502, f"{addresses.SEED_GATEWAY.v4}:1 refused the connection")


def test_refusals_of_the_shoot_arrive_in_words(scene: Scene) -> None:
    status, reason, _ = scene.refusal(at(addresses.pod(1).v4, 1))
    assert (status, reason) == (502, f"{addresses.pod(1).v4}:1 refused the connection")
    status, reason, took_s = scene.refusal(at("10.40.1.77", 80))
    assert status in (502, 504), reason
    assert took_s < 5.0


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_the_late_answer_after_half_a_close_arrives(scene: Scene, way: str) -> None:
    data = os.urandom(300_000)
    with scene.connect(at(addresses.SERVICE.v4, addresses.ECHO_PORT), way) as sock:
        received = bytearray()

        def receive() -> None:
            while more := sock.recv(65536):
                received.extend(more)

        if isinstance(sock, ssl.SSLSocket):
            # Python cannot half-close TLS; Go can, and tests/unit/.../test_ends.py does it with BIOs.
            sock.sendall(data)
            while len(received) < len(data):
                received.extend(sock.recv(65536))
        else:
            thread = threading.Thread(target=receive)
            thread.start()
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            thread.join(20)
    assert bytes(received) == data


def test_slow_ones_slow_nobody(scene: Scene) -> None:
    order = json.dumps({"bytes": 10**9, "send": "down"}).encode() + b"\n"
    slow_reader = scene.connect(at(addresses.pod(1).v4, addresses.BULK_PORT))
    slow_reader.sendall(order)
    slow_target = scene.connect(at(addresses.pod(1).v4, addresses.ECHO_PORT))
    slow_target.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            slow_target.send(bytes(65536))  # its echo is never read, so it stops to listen
    times = []
    for _ in range(50):
        began = time.monotonic()
        assert scene.reaches()
        times.append(time.monotonic() - began)
    assert max(times) < 1.0, times
    for sock in (slow_reader, slow_target):
        sock.close()


def test_the_shoot_reaches_no_port_of_the_proxy(scene: Scene) -> None:
    doors = ",".join([*scene.lab.tunnel_addresses(scene.lab.seed), *addresses.SEED])
    for machine in (scene.lab.node, scene.lab.pod):
        ports = f"{PORT},{addresses.ECHO_PORT}"
        report = machine.run_tool("scan", doors, ports, ports, 0.5)
        assert [
            answer for answer in report["answers"] if answer["port"] == PORT and answer["answer"] != "no route"
        ] == []


def test_a_shoot_clients_certificate_is_of_no_use(scene: Scene) -> None:
    """It was issued by another CA; with the same one, tests/unit shows that it is refused by its identity."""
    answer = b""
    with contextlib.suppress(OSError), scene.secure(scene.lab.pki.client("node-2")) as sock:
        sock.sendall(head(at(addresses.pod(1).v4, addresses.HTTP_PORT)))
        answer = sock.recv(100)
    assert answer == b""


def test_numbers_are_shown(scene: Scene) -> None:
    assert scene.reaches()
    wait_until(
        lambda: (health := scene.server.status().egress) is not None and dict(health.dials).get("dial ok", 0) > 0,
        "dials in the status",
    )
    metrics = scene.server.metrics()
    assert metrics['rhizome_egress_dials_total{result="ok",stage="dial"}'] > 0
    assert metrics['rhizome_egress_bytes_total{direction="down"}'] > 0
    assert metrics['rhizome_egress_dial_seconds_bucket{le="+Inf"}'] > 0
    assert scene.server.status().verdict.value == "UP"


def test_open_connections_outlive_the_daemon(scene: Scene) -> None:
    echo = at(addresses.node(1).v4, addresses.ECHO_PORT)
    with scene.connect(echo) as old, scene.connect(echo, "tls") as secure:
        scene.server.kill()
        for sock in (old, secure):
            sock.sendall(b"alone")
            assert sock.recv(100) == b"alone"
        assert scene.reaches(), "without a daemon everything declared is tried"
        scene.server.start()
        scene.server.wait_ready()
        for sock in (old, secure):
            sock.sendall(b"again")
            assert sock.recv(100) == b"again"
        assert scene.server.status().egress is not None
    wait_until(scene.reaches, "new connections")


def test_a_frozen_client_is_a_quick_503_with_its_cause(scene: Scene) -> None:
    target = at(addresses.pod(1).v4, addresses.HTTP_PORT)
    with frozen(scene.lab.node):
        began = time.monotonic()
        status, reason, took_s = scene.refusal(target)
        # The first one is on its way when nobody can know yet; it fails as soon as the canary is missed.
        assert (status, took_s < 6) == (503, True), (status, reason, took_s)
        assert time.monotonic() - began < 6
        for way in ("unix", "tls"):
            status, reason, took_s = scene.refusal(target, way)
            assert status == 503
            assert reason.startswith("tunnel down: node-1 has not answered for"), reason
            assert took_s < 0.5
    wait_until(scene.reaches, "the pod after the thaw")


def test_a_connection_outlives_wireguards_keys(scene: Scene) -> None:
    """Both devices that it went by in turn: it is bound to none of them."""
    wait_until(scene.reaches, "the pod")
    runtime = scene.lab.seed.directory / "run" / "rhizome"
    with scene.connect(at(addresses.pod(1).v4, addresses.HTTP_PORT)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        assert main(["rotate", "--wireguard-keys", "--runtime-dir", str(runtime)]) == 0
        wait_until(lambda: "WireGuard's keys are replaced" in scene.server.log(), "the rotation", 60, every_s=0.2)
        sock.sendall(b"Host: a\r\nConnection: close\r\n\r\n")
        page = b""
        while more := sock.recv(65536):
            page += more
    assert json.loads(page.partition(b"\r\n\r\n")[2])["machine"] == "pod1"
    assert scene.reaches()


def test_no_client_is_a_quick_503_with_its_cause(scene: Scene) -> None:
    """Last, because it takes the tunnel away."""
    scene.client.stop()
    kill_programs(scene.lab.node, "agent.carrier", "wireguard-go")
    target = at(addresses.pod(1).v4, addresses.HTTP_PORT)
    wait_until(lambda: scene.refusal(target)[1].startswith("tunnel down: node-1 has no"), "the cause", 10)
    status, reason, took_s = scene.refusal(target, "tls")
    assert status == 503, reason
    assert took_s < 0.5
    scene.server.stop()
    egress = [pid for pid in pids_in_network_namespace(scene.lab.seed.path) if "seed_server.egress" in _words(pid)]
    assert len(egress) == 1
    # The first SIGTERM drains and ends it; nothing is open, so that is now.
    os.kill(egress[0], signal.SIGTERM)
    wait_until(lambda: "seed_server.egress" not in _words(egress[0]), "the end of the egress process", 5)
    with pytest.raises(OSError, match=r"No such file|refused"):
        scene.unix()


def _words(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode()
    return ""
