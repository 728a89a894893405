"""Routes into our table and out of it, through the engine's port; the baseline is pyroute2, one call per route.

Runs in a network namespace of its own, needs root.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from typing import Any

from pyroute2 import AsyncIPRoute

from agent.host import AddRoute, DelRoute
from agent.model import ROUTE_PROTOCOL, ROUTE_TABLE, Route
from agent.netlink import LinuxNetStack
from benchmarks.figure import Figure
from lab.inside import Inside

_IFNAME = "bench0"
_SAMPLES = 5


def run() -> Iterator[Figure]:
    inside = Inside()
    try:
        with inside.entered():
            for command in (
                f"ip link add {_IFNAME} type veth peer name {_IFNAME}-peer",
                f"ip link set {_IFNAME}-peer up",
                f"ip link set {_IFNAME} up",
            ):
                subprocess.run(command.split(), check=True)
            for count in (1_000, 10_000):
                yield from asyncio.run(_figures(count))
    finally:
        inside.close()


async def _figures(count: int) -> list[Figure]:
    routes = [Route(IPv4Network((0x0A000000 + (number << 8), 24)), _IFNAME) for number in range(count)]
    adds: list[float] = []
    reads: list[float] = []
    async with LinuxNetStack() as net:
        for _ in range(_SAMPLES):
            async with _timed(adds):
                await net.apply([AddRoute(route) for route in routes])
            async with _timed(reads):
                state = await net.read([_IFNAME])
            assert state.routes == set(routes)
            await net.apply([DelRoute(route) for route in routes])
    one_by_one, listed = await _by_pyroute2(routes)
    note = "IPv4 /24, one device"
    return [
        Figure(f"routes.add_{count}_s", statistics.median(adds), "s", one_by_one, _SAMPLES, note),
        Figure(
            f"routes.read_{count}_s", statistics.median(reads), "s", listed, _SAMPLES, note + ", with links and rules"
        ),
    ]


async def _by_pyroute2(routes: list[Route]) -> tuple[float, float]:
    """Seconds to add the routes by a call each, and to list them with destination and device."""
    adds: list[float] = []
    reads: list[float] = []
    async with AsyncIPRoute() as ipr:
        (link,) = await ipr.link("get", ifname=_IFNAME)
        common: dict[str, Any] = {"oif": link["index"], "table": ROUTE_TABLE, "proto": ROUTE_PROTOCOL, "scope": "link"}
        async with _timed(adds):
            for route in routes:
                await ipr.route("replace", dst=str(route.dst), **common)
        async with _timed(reads):
            found = {
                (m.get("dst"), m["dst_len"], m.get("oif")) async for m in await ipr.route("dump", table=ROUTE_TABLE)
            }
        assert len(found) == len(routes)
        await ipr.flush_routes(table=ROUTE_TABLE)
    return adds[0], reads[0]


@asynccontextmanager
async def _timed(into: list[float]) -> AsyncIterator[None]:
    started = time.perf_counter()
    yield
    into.append(time.perf_counter() - started)
