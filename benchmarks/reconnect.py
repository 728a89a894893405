"""10,000 reconnects of one client: what each costs, and what is left of them in memory and descriptors."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.carrier.api import Ready, Redial, Stop, Up
from benchmarks._process import usage
from benchmarks.figure import Figure
from lab.loopback import SERVER_NAME, Daemon, Echo, Pinger, Pki, dial_config, free_port, listen_config

RECONNECTS = 10_000
WARM_UP = 1_000
#: An old stream drains for two seconds.
SETTLE_S = 4.0


@dataclass(frozen=True, slots=True)
class State:
    rss_kib: float
    descriptors: int
    cpu_s: float


def run() -> Iterator[Figure]:
    """`reconnect.{server,client}.{rss_growth_kib,descriptor_growth,cpu_ms}`: of the carrier process, between the WARM_UP-th and the last."""
    with tempfile.TemporaryDirectory(prefix="rhizome-bench-") as name:
        before, after = asyncio.run(measure(Path(name), RECONNECTS))
    note = f"carrier process, over {RECONNECTS - WARM_UP} make-before-break reconnects with full TLS handshakes"
    for role in before:
        first, last = before[role], after[role]
        yield Figure(f"reconnect.{role}.rss_growth_kib", last.rss_kib - first.rss_kib, "KiB", first.rss_kib, 1, note)
        growth = float(last.descriptors - first.descriptors)
        yield Figure(f"reconnect.{role}.descriptor_growth", growth, "descriptors", first.descriptors, 1, note)
        cpu_ms = 1000 * (last.cpu_s - first.cpu_s) / (RECONNECTS - WARM_UP)
        yield Figure(f"reconnect.{role}.cpu_ms", cpu_ms, "ms", None, RECONNECTS - WARM_UP, "CPU time of each reconnect")


async def measure(
    directory: Path, reconnects: int, warm_up: int = WARM_UP
) -> tuple[dict[str, State], dict[str, State]]:
    """Both carriers' state after `warm_up` reconnects and after all."""
    pki = Pki(directory / "pki")
    server_tls, client_tls = pki.server(), pki.client()
    port = free_port()
    with Echo() as echo, Pinger() as pinger:
        listen = listen_config(server_tls, echo.port, ("127.0.0.1", port))
        dial = dial_config(client_tls, pinger.port, ("127.0.0.1", port), server_name=SERVER_NAME)
        async with Daemon(directory / "server", listen) as server, Daemon(directory / "client", dial) as client:
            pids = {
                "server": (await server.record.until(Ready)).pid,
                "client": (await client.record.until(Ready)).pid,
            }
            try:
                await _reconnect(client, warm_up)
                before = await _states(pids)
                await _reconnect(client, reconnects - warm_up)
                return before, await _states(pids)
            finally:
                client.client.send(Stop())
                server.client.send(Stop())


async def _reconnect(client: Daemon, count: int) -> None:
    for _ in range(count):
        client.record.events.clear()
        client.client.send(Redial())
        await client.record.until(Up, timeout_s=30)


async def _states(pids: dict[str, int]) -> dict[str, State]:
    await asyncio.sleep(SETTLE_S)
    return {role: _state(pid) for role, pid in pids.items()}


def _state(pid: int) -> State:
    now = usage(pid)
    return State(now.rss_mib * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())), now.cpu_s)
