"""The queue: what a small question pays while a large transfer fills a line of 50 Mbit/s, 40 ms, 100 packets, through Envoy."""

from __future__ import annotations

import time
from collections.abc import Iterator
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


def run() -> Iterator[Figure]:
    """`queue.{download,upload}[.loss_0_5].{mbit_s,rtt_p50_ms,rtt_p95_ms}`; BBR on the proxy's host too, where TCP loses."""
    for suffix, loss in (("", 0.0), (".loss_0_5", 0.005)):
        with Lab("envoy-sni", impairment=Impairment.symmetric(50, 40, 100, loss)) as lab:
            lab.net.sysctl(net__ipv4__tcp_congestion_control="bbr")
            Scene.start(lab)
            for name, download in (("download", False), ("upload", True)):
                rates, p50, p95 = [], [], []
                for _ in range(ROUNDS):
                    with lab.seed.probe("udp", addresses.node(1).v4, addresses.ECHO_PORT, rate=50) as probe:
                        rates.append(
                            iperf(lab.seed, lab.node, addresses.node(1).v4, seconds=SECONDS, download=download).mbit_s
                        )
                    p50.append(probe.report.rtt_p50_ms)
                    p95.append(probe.report.rtt_p95_ms)
                    time.sleep(1)
                note = f"{LINE}, {loss:.1%} loss each way, one TCP flow through Envoy"
                yield Figure(f"queue.{name}{suffix}.mbit_s", median(rates), "Mbit/s", n=ROUNDS, note=note)
                yield Figure(f"queue.{name}{suffix}.rtt_p50_ms", median(p50), "ms", n=ROUNDS, note=note)
                yield Figure(f"queue.{name}{suffix}.rtt_p95_ms", median(p95), "ms", n=ROUNDS, note=note)
