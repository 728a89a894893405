"""Measures of benchmarks.path: figures as JSON, for the WireGuard that the machine has on which it runs. Needs root."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.identity import Role
from agent.pki import issue
from benchmarks import _konnectivity
from benchmarks._egress_load import HOST, MESSAGE_BYTES
from benchmarks._process import cpu_seconds
from benchmarks.figure import Figure
from lab import addresses
from lab.daemons import Value
from lab.lab import Lab
from lab.processes import wait_until

ROUNDS = 3
PROXY = "envoy-sni"
EGRESS_PORT = 9443
_AGENT_PORT = 8091
_ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parent.parent)}

#: Measure of `_egress_load`, its number, figures as name, key of the answer and unit, and a note.
_MEASURES = (
    ("connects", 200, (("connect_p50_ms", "p50", "ms"), ("connect_p99_ms", "p99", "ms")), "a connection each"),
    ("round_trips", 1000, (("round_trip_p50_ms", "p50", "ms"),), f"{MESSAGE_BYTES} bytes there and back"),
    ("down", 2, (("down_mib_s", "total", "MiB/s"),), "one stream from the node"),
    ("up", 2, (("up_mib_s", "total", "MiB/s"),), "one stream to the node"),
    ("down8", 2, (("down8_mib_s", "total", "MiB/s"),), "eight streams from the node"),
    ("up8", 2, (("up8_mib_s", "total", "MiB/s"),), "eight streams to the node"),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to the node: a lab, and how the load in its seed gets to the node."""

    lab: Lab
    way: Sequence[str]

    def ask(self, measure: str, number: float) -> dict[str, float]:
        """What the load measured; with `cpu_s` and `wireguard_cpu_s`, what it cost on all machines per GiB, if bytes were moved."""
        before = self._cpu()
        answer = self._ask(measure, number)
        if "total" in answer:
            spent = {name: after - before.get(name, 0.0) for name, after in self._cpu().items()}
            moved_gib = answer["total"] * number / 1024
            answer["cpu_s"] = sum(spent.values()) / moved_gib
            answer["wireguard_cpu_s"] = spent.get("wireguard-go", 0.0) / moved_gib
        return answer

    def _cpu(self) -> dict[str, float]:
        return cpu_seconds(self.lab.machines.values(), apart_from="_egress_load")

    def _ask(self, measure: str, number: float) -> dict[str, float]:
        words = _load("client", measure, str(number), *self.way)
        done = self.lab.seed.run(words, env=_ENVIRONMENT, timeout_s=120)
        answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return answer


def figures() -> Iterator[Figure]:
    for way in ("uds", "mtls"):
        with ExitStack() as stack:
            backend, ours = _rhizome(stack, way)
            theirs = _beside(stack, way)
            for measure, number, named, note in _MEASURES:
                answers = [(ours.ask(measure, number), theirs.ask(measure, number)) for _ in range(ROUNDS)]
                for figure, key, unit in named:
                    value, baseline = (_median(answers, side, key) for side in (0, 1))
                    yield Figure(f"path.{backend}.{way}.{figure}", value, unit, baseline, ROUNDS, note)
                if backend == "userspace" and measure in ("down", "up"):
                    baseline = _median(answers, 1, "cpu_s")
                    for key, words in (
                        ("cpu_s", "all processes of the way"),
                        ("wireguard_cpu_s", "of which wireguard-go"),
                    ):
                        name, value = f"path.{backend}.{way}.{measure}_{key}_per_gib", _median(answers, 0, key)
                        yield Figure(
                            name, value, "s/GiB", baseline, ROUNDS, f"{words}; baseline: all of konnectivity's"
                        )


def _median(answers: Sequence[tuple[dict[str, float], dict[str, float]]], side: int, key: str) -> float:
    return statistics.median(answer[side][key] for answer in answers)


def _rhizome(stack: ExitStack, way: str) -> tuple[str, Subject]:
    """Its data plane, and the way to its node."""
    lab, port = _lab(stack)
    socket = lab.directory / "egress.sock"
    settings: dict[str, Value] = {"node_networks": [*addresses.SHOOT_NODES, f"{HOST}/32"]}
    settings |= (
        {"egress_socket": str(socket)}
        if way == "uds"
        else {
            "egress_listen": [f"{addresses.SEED.v4}:{EGRESS_PORT}"],
            "egress_client_ca": str(lab.pki.directory / "ca.crt"),
        }
    )
    server = lab.seed_server(**settings)
    client = lab.shoot_client(node_addresses=[*addresses.node(1), HOST])
    for daemon in (server, client):
        daemon.start()
    for daemon in (client, server):
        daemon.wait_ready()
    return server.status().backend, Subject(lab, _way(lab, way, socket, port))


def _beside(stack: ExitStack, way: str) -> Subject:
    lab, port = _lab(stack)
    # Its ports begin at 1024; Envoy dials 443.
    lab.seed.nft(
        "table ip konnectivity { chain in { type nat hook prerouting priority dstnat; "
        f"tcp dport {addresses.SERVER_PORT} redirect to :{_AGENT_PORT}; }}; }}"
    )
    socket = lab.directory / "konnectivity.sock"
    server, agent = lab.pki.server(), lab.pki.client("agent")
    front = (
        ["--server-port=0", f"--uds-name={socket}"]
        if way == "uds"
        else [
            f"--server-port={EGRESS_PORT}",
            f"--server-ca-cert={server.ca}",
            f"--server-cert={server.certificate}",
            f"--server-key={server.key}",
        ]
    )
    programs = _konnectivity.BINARIES
    lab.seed.spawn(
        [
            str(programs / "konnectivity-server"),
            "--mode=http-connect",
            *front,
            f"--agent-port={_AGENT_PORT}",
            f"--cluster-ca-cert={server.ca}",
            f"--cluster-cert={server.certificate}",
            f"--cluster-key={server.key}",
        ]
    )
    lab.node.spawn(
        [
            str(programs / "konnectivity-agent"),
            f"--proxy-server-host={addresses.SERVER_NAME}",
            f"--proxy-server-port={addresses.SERVER_PORT}",
            f"--ca-cert={agent.ca}",
            f"--agent-cert={agent.certificate}",
            f"--agent-key={agent.key}",
        ]
    )
    ready = ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:8092/readyz"]
    wait_until(lambda: lab.seed.run(ready, check=False).returncode == 0, "konnectivity being ready", 30, 0.2)
    return Subject(lab, _way(lab, way, socket, port))


def _lab(stack: ExitStack) -> tuple[Lab, str]:
    """A lab, and the port of the load's target on its node."""
    lab = stack.enter_context(Lab(PROXY))
    lab.node.ip(f"address add {HOST}/32 dev lo")
    # It serves until its standard input ends, and a process of the lab has none.
    words = shlex.join(_load("target"))
    target = lab.node.spawn(["sh", "-c", f"sleep infinity | {words}"], name="target", env=_ENVIRONMENT)
    wait_until(lambda: target.output().strip().isdigit(), "the target listening")
    return lab, target.output().strip()


def _way(lab: Lab, way: str, socket: Path, port: str) -> list[str]:
    """As `_egress_load` wants it."""
    if way == "uds":
        return ["unix", str(socket), port]
    client = issue(lab.pki.directory, Role.SIDECAR, "kube-apiserver").files
    return ["tls", f"{addresses.SEED.v4}:{EGRESS_PORT}", client.ca, client.certificate, client.key, port]


def _load(*words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks._egress_load", *words]


if __name__ == "__main__":
    for figure in figures():
        print(figure.to_json(), flush=True)
