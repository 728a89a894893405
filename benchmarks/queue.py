"""The queue: what a small question pays while a large transfer fills a line of 50 Mbit/s, 40 ms, 100 packets, through Envoy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks.figure import Figure
from lab import addresses
from lab.faults import Scene
from lab.impair import Impairment
from lab.iperf import iperf
from lab.lab import Lab

ROUNDS = 3
SECONDS = 8.0
LINE = "50 Mbit/s, 40 ms, 100 packets"
STUCK_FLOWS = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """Medians over ROUNDS transfers."""

    mbit_s: float
    rtt_p50_ms: float
    rtt_p95_ms: float


def run() -> Iterator[Figure]:
    """`queue.{download,upload}[.loss_0_5].{mbit_s,rtt_p50_ms,rtt_p95_ms}`, seen from the shoot: a download comes from the seed.
    The flow inside is CUBIC, as Linux does it by default. `queue.download.bbr.*`: it is BBR, which backs off for no drop of ours.
    Outside it is BBR everywhere, also on the proxy's host. `queue.stuck_flow.*`: a download beside STUCK_FLOWS connections on which nobody
    reads; the same download without them is the baseline."""
    for suffix, loss in (("", 0.0), (".loss_0_5", 0.005)):
        with line(loss) as lab:
            note = f"{LINE}, {loss:.1%} loss each way, one CUBIC flow through Envoy"
            yield from _figures(f"queue.download{suffix}", loaded(lab, download=True), note)
            yield from _figures(f"queue.upload{suffix}", loaded(lab, download=False), note)
            if not loss:
                seen = loaded(lab, download=True, congestion="bbr")
                yield from _figures("queue.download.bbr", seen, note.replace("CUBIC", "BBR"))
    with line(0.0) as lab:
        free = loaded(lab, download=True)
        with stuck_flows(lab, STUCK_FLOWS):
            beside = loaded(lab, download=True)
    note = f"{LINE}; {STUCK_FLOWS} stuck TCP connections in the same tunnel, without them as baseline"
    yield Figure("queue.stuck_flow.mbit_s", beside.mbit_s, "Mbit/s", free.mbit_s, ROUNDS, note)
    yield Figure("queue.stuck_flow.rtt_p50_ms", beside.rtt_p50_ms, "ms", free.rtt_p50_ms, ROUNDS, note)


def _figures(name: str, seen: Seen, note: str) -> Iterator[Figure]:
    yield Figure(f"{name}.mbit_s", seen.mbit_s, "Mbit/s", n=ROUNDS, note=note)
    yield Figure(f"{name}.rtt_p50_ms", seen.rtt_p50_ms, "ms", n=ROUNDS, note=note)
    yield Figure(f"{name}.rtt_p95_ms", seen.rtt_p95_ms, "ms", n=ROUNDS, note=note)


@contextmanager
def line(loss: float) -> Iterator[Lab]:
    """A tunnel through Envoy over the narrow line, up and in use."""
    with Lab("envoy-sni", impairment=Impairment.symmetric(50, 40, 100, loss)) as lab:
        lab.net.sysctl(net__ipv4__tcp_congestion_control="bbr")
        Scene.start(lab)
        yield lab


def loaded(
    lab: Lab, *, download: bool, rounds: int = ROUNDS, seconds: float = SECONDS, congestion: str = "cubic"
) -> Seen:
    """A probe of 50 questions per second beside one TCP flow that takes what it can get."""
    rates, p50, p95 = [], [], []
    node = addresses.node(1).v4
    for _ in range(rounds):
        with lab.seed.probe("udp", node, addresses.ECHO_PORT, rate=50) as probe:
            flow = iperf(lab.seed, lab.node, node, seconds=seconds, download=not download, congestion=congestion)
            rates.append(flow.mbit_s)
        p50.append(probe.report.rtt_p50_ms)
        p95.append(probe.report.rtt_p95_ms)
        time.sleep(1)
    return Seen(median(rates), median(p50), median(p95))


@contextmanager
def stuck_flows(lab: Lab, count: int) -> Iterator[None]:
    """TCP connections from the seed to the node on which both ends have stopped reading."""
    command = lab.seed.tool("stall", addresses.node(1).v4, addresses.ECHO_PORT)
    flows = [lab.seed.spawn(command, name=f"stall-{number}") for number in range(count)]
    try:
        for flow in flows:
            flow.wait_for_output("stuck")
        yield
    finally:
        for flow in flows:
            flow.stop()
