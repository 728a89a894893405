"""`make demo`: the main job, shown with the real daemons and a real proxy, each claim checked."""

from __future__ import annotations

import json
import time

from rich.console import Console

from lab import addresses
from lab.addresses import Family, Target
from lab.daemons import Daemon
from lab.lab import Lab
from lab.processes import LabError, wait_until
from lab.steps import step, verdict
from lab.verdict import Findings, Reached

_FAMILIES: tuple[Family, Family] = (4, 6)
PATIENCE_S = 30.0
_BULK_BYTES = 100_000_000
_UDP_PORTS = "53,123,500,51820-51880"
_PORTS = "1-1024,2379,5432,6443,8080-8090,8443,9100,10250-10260,30000-30100,51820-51880"


class Demo:
    """One run. `run` says what it does as it goes, and returns what was found."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self.lab = lab
        self.found = Findings()
        self._console = console

    def run(self) -> Findings:
        """Raises LabError when something does not even start."""
        with step(
            self._console, "a landscape: seed, internet with a proxy, NAT router, shoot node with a pod and a service"
        ):
            self.lab.up()
        with step(self._console, "certificates of a control plane of its own (rhizome-agent pki)"):
            server, client = self.lab.seed_server(), self.lab.shoot_client()
        self._before()
        with step(self._console, "rhizome-seed-server starts in the seed"):
            server.start()
            self._wait_listening(server)
        with step(self._console, "rhizome-shoot-client starts on the shoot's node and dials out"):
            self._first_packet(client)
            client.wait_ready()
            server.wait_ready()
        self._reach()
        self._inspect(server, client)
        self._throughput()
        self._after()
        return self.found

    def _before(self) -> None:
        with step(
            self._console, "without the tunnel: the seed reaches nothing of the shoot, the shoot lets nothing in"
        ):
            answered = [
                f"{target.name} {target.address[family]}"
                for target in addresses.targets()
                for family in _FAMILIES
                if self._get(target, family, patience_s=0.5) is not None
            ]
            self.found.check(
                "before the tunnel",
                not answered,
                "the seed reached " + (", ".join(answered) or "neither node, pod nor service"),
            )
            self._knock("before the tunnel")

    def _after(self) -> None:
        with step(self._console, "with the tunnel: the shoot still lets nothing in, and reaches nothing of the seed"):
            self._knock("with the tunnel")
            ends = self.lab.tunnel_addresses(self.lab.seed)
            report = self.lab.node.run_tool("scan", ",".join([*ends, *addresses.SEED]), _PORTS, _UDP_PORTS, 0.5)
            answers = [a for a in report["answers"] if not self._exposed(a)]
            self.found.check(
                "from shoot to seed",
                len(ends) == 2 and not answers,
                f"{report['asked']} knocks at the seed's pod and, through the tunnel, at {' and '.join(ends)}, {_in_words(answers)}",
            )

    def _knock(self, when: str) -> None:
        """From the internet at the NAT router and behind it, and from the node's own neighbour, at the node."""
        doors = ",".join([*addresses.NAT_OUTSIDE, *(a for t in addresses.targets() for a in t.address)])
        before = self.lab.node.counter("refused") + self.lab.nat.counter("refused")
        far = self.lab.net.run_tool("scan", doors, _PORTS, _UDP_PORTS, 0.5)
        near = self.lab.nat.run_tool("scan", ",".join(addresses.node(1)), _PORTS, _UDP_PORTS, 0.5)
        dropped = self.lab.node.counter("refused") + self.lab.nat.counter("refused") - before
        asked = far["asked"] + near["asked"]
        answers = far["answers"] + near["answers"]
        unseen = f"; but the firewalls dropped only {dropped} packets" if dropped < asked else ""
        self.found.check(
            f"no way into the shoot, {when}",
            not answers and dropped >= asked,
            f"{asked} knocks from the internet and from the node's neighbour, {_in_words(answers)}{unseen}",
        )

    def _wait_listening(self, server: Daemon) -> None:
        def listening() -> bool:
            if server.process.exit_code is not None:
                raise LabError(
                    f"{server.command} ended with exit code {server.process.exit_code}\n{server.process.tail()}"
                )
            return bool(self.lab.seed.run(["ss", "-Hltn", f"sport = :{addresses.SERVER_PORT}"]).stdout)

        wait_until(listening, "the seed server listening", every_s=0.05)

    def _first_packet(self, client: Daemon) -> None:
        """UDP questions from the seed to the node, 200 a second, from before the client starts until one is answered."""
        with self.lab.seed.probe("udp", addresses.node(1).v4, addresses.ECHO_PORT, rate=200) as probe:
            started = time.monotonic()
            client.start()
            try:
                probe.wait_for_answer(PATIENCE_S)
            except LabError as exc:
                raise LabError(
                    f"no packet crossed the tunnel within {PATIENCE_S:g} s\n{client.process.tail()}"
                ) from exc
        if probe.report.first_answer_at is not None:
            self.found.first_packet_s = probe.report.first_answer_at - started

    def _reach(self) -> None:
        with step(self._console, "requests from the seed to node, pod and service, over IPv4 and IPv6"):
            for target in addresses.targets():
                expected = "node1" if target.name == "node" else "pod1"
                for family in _FAMILIES:
                    start = time.monotonic()
                    page = self._get(target, family, patience_s=5)
                    took = time.monotonic() - start
                    answered = page is not None and page.get("machine") == expected
                    if answered:
                        self.found.reached.append(Reached(target.name, target.address[family], expected, took))
                    else:
                        self.found.check(
                            f"{target.name} by IPv{family}", False, f"{target.url(family)} answered {page or 'nothing'}"
                        )
            pings = [
                self.lab.seed.run(["ping", "-c1", "-W2", target.address[family]], check=False).returncode == 0
                for target in addresses.targets()
                if target.answers_ping
                for family in _FAMILIES
            ]
            self.found.check("ping", all(pings), f"{sum(pings)} of {len(pings)} to node and pod answered")

    def _inspect(self, server: Daemon, client: Daemon) -> None:
        with step(self._console, "which way it goes"):
            seen, on_client = server.status(), client.status()
            self.found.path = self._path()
            self.found.data_plane = f"WireGuard, {seen.backend_reason}"
            self.found.handshake_age_s = self.lab.handshake_age_s(self.lab.seed)
            comes_from, goes_to = self.lab.connected_from(), self.lab.connected_to()
            self.found.check(
                "dialled by the shoot",
                self.lab.came_the_right_way(),
                f"the node's only connection goes to {', '.join(goes_to)}, the seed's only one comes from {', '.join(comes_from)}",
            )
            self.found.check(
                "health", on_client.verdict.ready and seen.verdict.ready, f"{seen.sentence}; {on_client.sentence}"
            )

    def _path(self) -> list[str]:
        family = self.lab.underlay
        front = self.lab.front
        stations = [f"node {addresses.node(1)[family]}", f"NAT router {addresses.NAT_OUTSIDE[family]}"]
        stations += [f"{front.kind.words} {self.lab.entrance()}"] if front is not None else []
        stations += [f"seed server {addresses.SEED[family]}"]
        return ["one TLS 1.3 connection, dialled out: " + stations[0], *(f"  -> {station}" for station in stations[1:])]

    @staticmethod
    def _exposed(answer: dict[str, object]) -> bool:
        """Without a proxy the seed server's own port is open to the world."""
        return answer["address"] in tuple(addresses.SEED) and answer["port"] == addresses.SERVER_PORT

    def _throughput(self) -> None:
        with step(self._console, f"{_BULK_BYTES // 1_000_000} MB from a pod to the seed, and checksums compared"):
            report = self.lab.seed.run_tool(
                "transfer", addresses.pod(1), addresses.BULK_PORT, _BULK_BYTES, "down", timeout_s=120
            )
            self.found.mbit_s = report["mbit_s"]
            self.found.check("intact", report["intact"], f"{report['bytes']} bytes in {report['seconds']:.1f} s")

    def _get(self, target: Target, family: Family, patience_s: float) -> dict[str, str] | None:
        """The page as the seed sees it, None when there is none."""
        done = self.lab.seed.run(["curl", "-gsS", "-m", str(patience_s), target.url(family)], check=False)
        if done.returncode:
            return None
        page: dict[str, str] = json.loads(done.stdout)
        return page


def _in_words(answers: list[dict[str, object]]) -> str:
    """The answers of a scan."""
    if not answers:
        return "none answered"
    first = ", ".join(f"{a['protocol']} {a['address']} port {a['port']}: {a['answer']}" for a in answers[:3])
    return f"{len(answers)} ANSWERED ({first}{', ...' if len(answers) > 3 else ''})"


def show(found: Findings, console: Console) -> None:
    """The verdict, for people."""
    verdict(console, found.works, "The seed reaches the shoot, and the shoot let nothing in.", found.lines())
