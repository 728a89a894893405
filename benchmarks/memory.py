"""Resident memory and idle CPU of the daemons and their carriers, idle and with 1,000 clients."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._crowd import client_name
from benchmarks._process import Usage, pid_of, usage
from benchmarks.figure import Figure
from lab import addresses
from lab.daemons import Daemon
from lab.lab import Lab

SETTLE_S = 10.0
IDLE_S = 20.0
CLIENTS = 1000
#: New clients are asked by the canary more often for their first ten seconds.
CROWD_SETTLE_S = 20.0


def run() -> Iterator[Figure]:
    """`rss.ROLE.idle_mib` is the daemon's own; `rss.ROLE.carrier.idle_mib` its carrier's; `idle_cpu.ROLE.percent` both together.
    `*.clients_1000_*`: the seed server with so many enrolled clients that are silent but for their liveness."""
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
        server = lab.seed_server()
        server.start()
        with crowd(lab, CLIENTS) as enrolled_s:
            time.sleep(CROWD_SETTLE_S)
            note = f"{CLIENTS} clients with a stream each, idle; no WireGuard behind them"
            yield from _of(server, "seed_server", f"clients_{CLIENTS}", note)
            yield Figure(f"enroll.clients_{CLIENTS}_s", enrolled_s, "s", note="from the first dial to the last grant")


@contextmanager
def crowd(lab: Lab, count: int) -> Iterator[float]:
    """So many enrolled clients, in one process on the lab's node. Yields the seconds it took them."""
    for number in range(count):
        lab.pki.client(client_name(number))
    command = [sys.executable, "-m", "benchmarks._crowd", str(count), str(lab.pki.directory)]
    command += [addresses.SEED.v4, str(addresses.SERVER_PORT)]
    root = Path(__file__).parent.parent
    argv = lab.node.command(["env", f"PYTHONPATH={root}", *command])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            assert process.stdout is not None
            word, _, seconds = process.stdout.readline().partition(" ")
            if word != "enrolled":
                raise RuntimeError("the crowd did not come")
            yield float(seconds)
        finally:
            process.terminate()


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
