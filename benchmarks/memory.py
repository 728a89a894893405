"""Resident memory and idle CPU of the daemons and their carriers, idle and with 1,000 clients."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks._clients import gathered, seed_server
from benchmarks._process import Usage, pid_of, usage
from benchmarks.figure import Figure
from lab.daemons import Daemon
from lab.lab import Lab

SETTLE_S = 10.0
IDLE_S = 20.0
CLIENTS = 1000
#: New clients are asked by the canary more often for their first ten seconds.
CROWD_SETTLE_S = 20.0


def run() -> Iterator[Figure]:
    """`rss.ROLE.idle_mib` is the daemon's own; `rss.ROLE.carrier.idle_mib` its carrier's; `idle_cpu.ROLE.percent` both together.
    `*.clients_1000_*`: the seed server with so many enrolled clients that say nothing but liveness and canaries."""
    with Lab("envoy-sni") as lab:
        server, client = lab.seed_server(), lab.shoot_client()
        server.start()
        client.start()
        client.wait_ready()
        server.wait_ready()
        time.sleep(SETTLE_S)
        for name, daemon in (("seed_server", server), ("shoot_client", client)):
            yield from _of(daemon, name, "idle", "one tunnel, idle")
    with Lab() as lab:
        server = seed_server(lab)
        server.start()
        with gathered(lab, CLIENTS) as clients:
            time.sleep(CROWD_SETTLE_S)
            note = f"{CLIENTS} clients with a stream and a WireGuard session each, idle but for canaries"
            yield from _of(server, "seed_server", f"clients_{CLIENTS}", note)
            note = "from the first dial to the last grant"
            yield Figure(f"enroll.clients_{CLIENTS}_s", clients.enrolled_s, "s", note=note)


def _of(daemon: Daemon, name: str, state: str, note: str) -> Iterator[Figure]:
    daemon_pid, carrier_pid = pid_of(daemon.machine, daemon.command), pid_of(daemon.machine, "agent.carrier")
    before = usage(daemon_pid), usage(carrier_pid)
    time.sleep(IDLE_S)
    after = usage(daemon_pid), usage(carrier_pid)
    own, carrier = after
    together = f"proportional set size of daemon and carrier together: {own.pss_mib + carrier.pss_mib:.1f} MiB"
    yield Figure(f"rss.{name}.{state}_mib", own.rss_mib, "MiB", note=f"{note}; {together}")
    yield Figure(f"rss.{name}.carrier.{state}_mib", carrier.rss_mib, "MiB", note="its carrier process")
    cpu = "idle_cpu" if state == "idle" else f"{state}_cpu"
    note = f"daemon and carrier over {IDLE_S:.0f} s"
    yield Figure(f"{cpu}.{name}.percent", _percent(before, after), "% of a core", note=note)


def _percent(before: tuple[Usage, Usage], after: tuple[Usage, Usage]) -> float:
    return 100 * sum(a.cpu_s - b.cpu_s for a, b in zip(after, before, strict=True)) / IDLE_S
