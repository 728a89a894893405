#!/usr/bin/env python3
"""Record benchmarks and write docs/benchmarks.md from the record: scripts/benchmarks.py [record NAME...].

`record` runs `python -m benchmarks NAME -o json` and keeps what it printed in docs/benchmarks/NAME.jsonl, with the machine
in its first line. Without it, only the page is written. No number on the page is typed in by hand.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"

#: The figure (with `:ratio`: divided by the baseline of the same run), how it has to be, and what was aimed at.
AIMS: tuple[tuple[str, str, float, str], ...] = (
    ("relay.udp_to_tls.gbit_per_cpu_s", ">=", 3.0, "relay: 3 Gbit/s per CPU-second, UDP to TLS"),
    ("relay.tls_to_udp.gbit_per_cpu_s", ">=", 3.0, "relay: 3 Gbit/s per CPU-second, TLS to UDP"),
    ("relay.vs_envoy.cpu_ratio", "<=", 0.5, "relay: at most half of Envoy's CPU per byte"),
    ("first_packet.sni.p50_s", "<=", 1.0, "first packet after start, through SNI, p50"),
    ("first_packet.connect.p50_s", "<=", 1.0, "first packet after start, through CONNECT, p50"),
    ("outage.proxy_restart_s", "<=", 1.0, "traffic again after the proxy's return"),
    ("outage.server_restart_s", "<=", 1.0, "traffic again after the server's return"),
    ("outage.server_daemon_killed_s", "<=", 0.02, "seed server's daemon killed: nothing lost"),
    ("outage.client_daemon_killed_s", "<=", 0.02, "shoot client's daemon killed: nothing lost"),
    ("rss.seed_server.idle_mib", "<=", 64.0, "resident memory, seed server's daemon, idle"),
    ("rss.shoot_client.idle_mib", "<=", 64.0, "resident memory, shoot client's daemon, idle"),
    ("queue.download.rtt_p50_ms", "<=", 80.0, "RTT of a probe under a download through Envoy, p50"),
    ("queue.download.mbit_s", ">=", 40.0, "that download on a line of 50 Mbit/s"),
    ("queue.download.loss_0_5.rtt_p50_ms", "<=", 80.0, "the same at 0.5% loss: RTT"),
    ("queue.download.loss_0_5.mbit_s", ">=", 40.0, "the same at 0.5% loss: throughput"),
    ("egress.uds.connect_p50_ms", "<=", 0.8, "egress: CONNECT on the Unix socket, p50"),
    ("egress.uds.connect_p50_ms:ratio", "<=", 1.0, "the same beside konnectivity"),
    ("egress.mtls.connect_p50_ms:ratio", "<=", 1.0, "egress: CONNECT over TLS, p50, beside konnectivity"),
    ("egress.uds.down_mib_s:ratio", ">=", 2.0, "egress: one stream down, Unix socket, beside konnectivity"),
    ("egress.uds.up_mib_s:ratio", ">=", 2.0, "egress: one stream up, Unix socket, beside konnectivity"),
    ("egress.mtls.down_mib_s:ratio", ">=", 2.0, "egress: one stream down, TLS, beside konnectivity"),
    ("egress.mtls.up_mib_s:ratio", ">=", 2.0, "egress: one stream up, TLS, beside konnectivity"),
    ("egress.rss_1000_mib:ratio", "<=", 1.0, "egress: memory with 1,000 idle connections, beside konnectivity"),
    ("egress.uds.stalled_served_percent", ">=", 100.0, "egress: answered while others do not read"),
    ("path.kernel.uds.down_mib_s:ratio", ">=", 1.0, "whole path, kernel: one stream down, beside konnectivity"),
    ("path.kernel.uds.up_mib_s:ratio", ">=", 1.0, "whole path, kernel: one stream up, beside konnectivity"),
    ("path.kernel.mtls.down_mib_s:ratio", ">=", 1.0, "whole path, kernel, TLS: one stream down, beside konnectivity"),
    ("path.kernel.mtls.up_mib_s:ratio", ">=", 1.0, "whole path, kernel, TLS: one stream up, beside konnectivity"),
    ("ipam.allocate_us", "<=", 50.0, "IPAM: one allocation in a /16 with 60,000 taken, in memory"),
    ("ipam.rebuild_65000_s", "<=", 1.0, "IPAM: a ledger of 65,000 rebuilt"),
    ("ipam.check_10000_seeds_s", "<=", 1.0, "IPAM: the networks of 10,000 seeds checked"),
    ("ipam.soak.memory.steps", ">=", 500_000, "IPAM: steps of its state machine in memory, no promise broken"),
    ("ipam.processes.duplicates", "<=", 0, "IPAM: addresses with two owners, 32 processes being killed"),
    ("ipam.processes.leaked_after_gc", "<=", 0, "IPAM: leaks after that and garbage collection"),
    ("scale.enroll_s.5000", "<=", 60.0, "5,000 clients enrolled on one seed server"),
    ("scale.failover_s.5000", "<=", 3.0, "of 5,000 clients one dies: its shared prefixes carried by another"),
    ("routes.add_1000_s", "<=", 0.5, "1,000 routes"),
)

INTRODUCTION = """# Benchmarks

Every number here was measured by the project's own benchmarks and written by `scripts/benchmarks.py`; none is typed in. The machines
are small and shared: trust ratios before absolute figures. Data plane: `wireguard-go`, unless a row says kernel; two cores carry
both ends of every tunnel, the proxy and the load generators together.
"""


def record(names: list[str]) -> None:
    RECORD.mkdir(exist_ok=True)
    for name in names:
        print(f"benchmark {name} ...", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", name, "-o", "json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        machine = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "cores": os.cpu_count(),
            "kernel": platform.release().split("-")[0],
            "python": platform.python_version(),
            "load": round(os.getloadavg()[1], 1),
        }
        (RECORD / f"{name}.jsonl").write_text(json.dumps(machine) + "\n" + done.stdout)
        sys.path.insert(0, str(ROOT))
        if plot := getattr(importlib.import_module(f"benchmarks.{name}"), "plot", None):
            plot([json.loads(line) for line in done.stdout.splitlines()], RECORD / f"{name}.svg")


def page() -> str:
    blocks = list[str]()
    figures = dict[str, dict[str, Any]]()
    for path in sorted(RECORD.glob("*.jsonl")):
        machine, *rows = (json.loads(line) for line in path.read_text().splitlines())
        figures |= {row["figure"]: row for row in rows}
        blocks.append(_benchmark(path.stem, machine, rows))
    aims = ["## Aims", "", "| aim | wanted | measured | |", "|---|---|---|---|"]
    for name, sign, wanted, words in AIMS:
        figure, _, ratio = name.partition(":")
        if row := figures.get(figure):
            value, unit = (row["ratio"], "x") if ratio else (row["value"], row["unit"])
            reached = value <= wanted if sign == "<=" else value >= wanted
            verdict = "reached" if reached else "**not reached**"
            aims.append(f"| {words} | {sign} {wanted:g} {unit} | {value:g} {unit} | {verdict} |")
    return "\n".join([INTRODUCTION, *aims, "", *blocks])


def _benchmark(name: str, machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        f"## {name}",
        "",
        f"`.venv/bin/python -m benchmarks {name}`, {machine['date']}, {machine['cores']} cores, Linux {machine['kernel']}, ",
    ]
    lines[-1] += f"Python {machine['python']}, load average {machine['load']}"
    if (RECORD / f"{name}.svg").exists():
        lines += ["", f"![{name}](benchmarks/{name}.svg)"]
    lines += ["", "| figure | value | unit | baseline | ratio | n | note |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        baseline, ratio = (f"{row[key]:g}" if row[key] is not None else "" for key in ("baseline", "ratio"))
        lines.append(
            f"| `{row['figure']}` | {row['value']:g} | {row['unit']} | {baseline} | {ratio} | {row['n']} | {row['note']} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        record(sys.argv[2:])
    PAGE.write_text(page())
