"""From the start of the shoot client's process to the first answered packet, through real proxies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median, quantiles

from benchmarks.figure import Figure
from lab import addresses
from lab.faults import kill_programs
from lab.lab import Lab
from lab.processes import wait_until

STARTS = 30
KINDS = {"sni": "envoy-sni", "connect": "envoy-connect"}


def run() -> Iterator[Figure]:
    """`first_packet.{sni,connect}.{p50,p95}_s` over STARTS starts each; the client has no device and no carrier before each."""
    for name, kind in KINDS.items():
        with Lab(kind) as lab:
            server, client = lab.seed_server(), lab.shoot_client()
            server.start()
            wait_until(
                lambda: bool(lab.seed.run(["ss", "-Hltn", f"sport = :{addresses.SERVER_PORT}"]).stdout),
                "the server listening",
            )
            times = []
            for _ in range(STARTS):
                with lab.seed.probe("udp", addresses.node(1).v4, addresses.ECHO_PORT, rate=200) as probe:
                    started = time.monotonic()
                    client.start()
                    client.wait_ready()
                first = probe.report.first_answer_at
                assert first is not None
                times.append(first - started)
                client.stop()
                kill_programs(lab.node, "agent.carrier", "wireguard-go")
                lab.node.run(["ip", "link", "delete", "rz-shoot"], check=False)
        note = f"client's process start to first answer, through {kind}"
        yield Figure(f"first_packet.{name}.p50_s", median(times), "s", n=len(times), note=note)
        yield Figure(f"first_packet.{name}.p95_s", quantiles(times, n=20)[18], "s", n=len(times), note=note)
