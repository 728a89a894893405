"""The egress proxy beside a real konnectivity server with its agent, with the target reached directly: no tunnel in the path.

    client (as kube-apiserver) -- Unix socket or TLS with client certificate -- proxy -- TCP -- target
    client                     -- the same                                   -- konnectivity server -- gRPC -- agent -- TCP -- target

Everything runs on the loopback device of one network namespace. `direct` rows, where there are some, are the client and the
target without anything between: what the load generator can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agent.carrier.api import TlsFiles
from agent.identity import Role
from agent.pki import issue, make_ca
from benchmarks import _konnectivity
from benchmarks._egress_load import HOST, MESSAGE_BYTES
from benchmarks._process import usage
from benchmarks.figure import Figure
from lab.inside import Inside
from seed_server.egress.api import EgressConfig, Ready, UnixListen
from seed_server.egress.client import EgressClient, stop_egress

ROUNDS = 3
CONNECTS = 300
ROUND_TRIPS = 2000
STREAM_S = 1.0
STALLED_S = 5.0
IDLE = 1000
PORT = 9443
KONNECTIVITY_PORT = 9444
WAYS = ("uds", "mtls")

#: Measure, its number, and the figures it gives: name, key of the answer, unit.
MEASURES: tuple[tuple[str, float, tuple[tuple[str, str, str], ...]], ...] = (
    ("connects", CONNECTS, (("connect_p50_ms", "p50", "ms"), ("connect_p99_ms", "p99", "ms"))),
    ("round_trips", ROUND_TRIPS, (("round_trip_p50_ms", "p50", "ms"), ("round_trip_p99_ms", "p99", "ms"))),
    ("down", STREAM_S, (("down_mib_s", "total", "MiB/s"),)),
    ("up", STREAM_S, (("up_mib_s", "total", "MiB/s"),)),
    ("down8", STREAM_S, (("down8_mib_s", "total", "MiB/s"), ("down8_least_mib_s", "least", "MiB/s"))),
    ("up8", STREAM_S, (("up8_mib_s", "total", "MiB/s"), ("up8_least_mib_s", "least", "MiB/s"))),
)

_NOTES = {
    "connects": "one CONNECT after the other, a connection each",
    "round_trips": f"{MESSAGE_BYTES} bytes there and back",
    "down": "one stream from the target",
    "up": "one stream to the target",
    "down8": "eight streams from the target",
    "up8": "eight streams to the target",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that is measured: how to reach it by each way, and its processes by way."""

    ways: dict[str, list[str]]
    pids: dict[str, tuple[int, ...]]


def run() -> Iterator[Figure]:
    _konnectivity.build()
    place = Inside()
    with contextlib.ExitStack() as stack:
        stack.callback(place.close)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rhizome-egress-")))
        stack.enter_context(place.entered())
        for command in (["link", "set", "lo", "up"], ["address", "add", f"{HOST}/32", "dev", "lo"]):
            subprocess.run(["ip", *command], check=True)
        yield from _measure(stack, directory)


def _measure(stack: contextlib.ExitStack, directory: Path) -> Iterator[Figure]:
    make_ca(directory, "bench")
    addresses = [ip_address("127.0.0.1")]
    server = issue(directory, Role.SEED_SERVER, dns=("vpn-seed-server",), ips=addresses).files
    client = issue(directory, Role.SIDECAR, "kube-apiserver").files
    target = stack.enter_context(_role("target"))
    assert target.stdout is not None
    port = target.stdout.readline().strip()
    ours = _egress(stack, directory, server, client, port)
    theirs = _beside(stack, directory, server, client, port)
    yield from _idle(ours, theirs)
    results: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    direct: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):  # in turns, so that a noisy moment of the machine meets all of them
        for measure, number, _ in MEASURES:
            direct.setdefault(measure, []).append(_ask(measure, number, ["direct", port]))
            for way in WAYS:
                for name, subject in (("ours", ours), ("theirs", theirs)):
                    results.setdefault((name, way, measure), []).append(_ask(measure, number, subject.ways[way]))
    for way in WAYS:
        for measure, _, figures in MEASURES:
            for figure, key, unit in figures:
                value, baseline = (_median(results[name, way, measure], key) for name in ("ours", "theirs"))
                note = f"{_NOTES[measure]}; direct: {_median(direct[measure], key):.3g} {unit}"
                yield Figure(f"egress.{way}.{figure}", value, unit, baseline, ROUNDS, note)
    yield from _stalled(ours, theirs)


def _idle(ours: Subject, theirs: Subject) -> Iterator[Figure]:
    for way in WAYS:
        rss, pss = [], []
        for subject in (ours, theirs):
            with _role("client", "hold", IDLE, *subject.ways[way]) as process:
                assert process.stdout is not None
                if process.stdout.readline().strip() != "ready":
                    raise RuntimeError(f"{IDLE} connections do not come up by {way}")
                used = [usage(pid) for pid in subject.pids[way]]
            rss.append(sum(one.rss_mib for one in used))
            pss.append(sum(one.pss_mib for one in used))
        note = f"resident memory with {IDLE} idle connections; proportional {pss[0]:.1f} against {pss[1]:.1f} MiB; baseline: server and agent"
        name = "egress.rss_1000_mib" if way == "uds" else f"egress.{way}.rss_1000_mib"
        yield Figure(name, rss[0], "MiB", rss[1], IDLE, note)


def _stalled(ours: Subject, theirs: Subject) -> Iterator[Figure]:
    """Last, because konnectivity does not come back to life at once."""
    for way in WAYS:
        mine, other = (_ask("stalled", STALLED_S, subject.ways[way]) for subject in (ours, theirs))
        note = "requests answered within 2 s while one client and one target do not read"
        percent = [100 * result["served"] / result["asked"] for result in (mine, other)]
        yield Figure(f"egress.{way}.stalled_served_percent", percent[0], "%", percent[1], int(mine["asked"]), note)
        if "p99" in mine:
            note = "CONNECT and one byte there and back meanwhile; no baseline where konnectivity answered none"
            yield Figure(f"egress.{way}.stalled_p99_ms", mine["p99"], "ms", other.get("p99"), int(mine["served"]), note)


def _egress(stack: contextlib.ExitStack, directory: Path, server: TlsFiles, client: TlsFiles, port: str) -> Subject:
    """Our proxy, as the daemon starts it."""
    control, unix = directory / "run" / "bench.egress", directory / "egress.sock"
    config = EgressConfig(
        addresses=(("127.0.0.1", PORT),),
        tls=server,
        unix=UnixListen(str(unix), None, None, 0o600),
        shoot=(f"{HOST}/32",),
    )

    async def start() -> int:
        daemon = await EgressClient(control, config).attach()
        ready = await anext(daemon.events())
        await daemon.detach()
        assert isinstance(ready, Ready)
        return ready.pid

    pid = asyncio.run(start())
    stack.callback(lambda: asyncio.run(stop_egress(control)))
    ways = {"uds": ["unix", str(unix), port], "mtls": _tls(PORT, client, port)}
    return Subject(ways, dict.fromkeys(WAYS, (pid,)))


def _beside(stack: contextlib.ExitStack, directory: Path, server: TlsFiles, client: TlsFiles, port: str) -> Subject:
    """konnectivity has one kind of front per process: two servers, each with an agent of its own."""
    unix = directory / "konnectivity.sock"
    agent = issue(directory, Role.SHOOT_CLIENT, "agent").files
    fronts = {
        "uds": ["--server-port=0", f"--uds-name={unix}"],
        "mtls": [
            f"--server-port={KONNECTIVITY_PORT}",
            f"--server-ca-cert={server.ca}",
            f"--server-cert={server.certificate}",
            f"--server-key={server.key}",
        ],
    }
    pids = {
        way: stack.enter_context(_konnectivity.running(directory, front, server, agent, 9500 + 10 * index))
        for index, (way, front) in enumerate(fronts.items())
    }
    ways = {"uds": ["unix", str(unix), port], "mtls": _tls(KONNECTIVITY_PORT, client, port)}
    time.sleep(1)
    return Subject(ways, dict(pids))


def _tls(front_port: int, client: TlsFiles, port: str) -> list[str]:
    return ["tls", f"127.0.0.1:{front_port}", client.ca, client.certificate, client.key, port]


@contextlib.contextmanager
def _role(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A process of `_egress_load`; it ends when its standard input does."""
    command = [sys.executable, "-m", "benchmarks._egress_load", *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _ask(measure: str, number: float, way: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks._egress_load", "client", measure, str(number), *way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{measure} by {way[0]}: {done.stderr[-1000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _median(answers: list[dict[str, float]], key: str) -> float:
    return statistics.median(answer[key] for answer in answers)
