"""How many allocations and releases a second, by store, by how full a /16 is, and by how many write at once.

The Kubernetes store talks HTTP to a stand-in for the API server in this process (lab.apiserver), which costs more time than a real one's network
and less than its etcd; tests/kube has the real one.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from ipam.allocate import allocate
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store
from ipam.stores.file import FileStore
from ipam.stores.memory import MemoryStore

POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/16")), Pool.tunnel(IPv6Network("fd00::/96"))))
FILLS = (0.0, 0.25, 0.5, 0.75, 0.95)
WRITERS = (1, 8, 32)
STORES = ("memory", "file", "kubernetes")
SAMPLES = {"memory": 500, "file": 500, "kubernetes": 60}
#: Of all writers together.
CONTENDED = {"memory": 960, "file": 960, "kubernetes": 192}
NOW = 1_000_000.0


def owner(name: str) -> Owner:
    return Owner("shoot-client", "shoot--garden--bench", name, f"uid-{name}")


def run() -> Iterator[Figure]:
    ledger, taken = Ledger(), 0
    for fill in FILLS:
        while taken < fill * 65536:
            ledger, _ = allocate(ledger, POLICY, owner(f"node-{taken:05}"), NOW)
            taken += 1
        for kind in STORES:
            yield from asyncio.run(_rates(kind, fill, ledger))
    for kind in STORES:
        for writers in WRITERS:
            yield asyncio.run(_contention(kind, writers))


@asynccontextmanager
async def _stores(kind: str, count: int) -> AsyncIterator[list[Store]]:
    """Views of one store, as several processes have them."""
    async with AsyncExitStack() as stack:
        if kind == "memory":
            yield [MemoryStore()] * count
        elif kind == "file":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rhizome-bench-ipam-"))
            yield [FileStore(Path(folder, "ledger")) for _ in range(count)]
        else:
            import httpx2

            from ipam.stores.kubeapi import ConfigMaps
            from ipam.stores.kubernetes import KubernetesStore
            from lab.apiserver import ApiServer

            server = ApiServer()
            url = await server.start()
            stack.push_async_callback(server.stop)
            apis = [await stack.enter_async_context(httpx2.AsyncClient(base_url=url)) for _ in range(count)]
            yield [KubernetesStore(ConfigMaps(api, "garden", "bench"), "bench") for api in apis]


async def _rates(kind: str, fill: float, ledger: Ledger) -> list[Figure]:
    async with _stores(kind, 1) as (store,):
        if len(ledger):
            await store.write(ledger, (await store.read())[1])
        book, found = AddressBook(store, POLICY), []
        names = [f"new-{n}" for n in range(SAMPLES[kind])]
        for word, call in (("allocate", book.ensure), ("release", book.release)):
            began = time.perf_counter()
            for name in names:
                await call(owner(name), NOW)
            rate = len(names) / (time.perf_counter() - began)
            note = f"one after the other, {len(ledger):,} there"
            found.append(Figure(f"ipam.{kind}.{word}.at_{fill:.0%}", rate, "1/s", n=len(names), note=note))
        began = time.perf_counter()
        await asyncio.gather(*(book.ensure(owner(f"many-{n}"), NOW) for n in range(SAMPLES[kind])))
        rate = SAMPLES[kind] / (time.perf_counter() - began)
        note = f"all at once in one process, which share writes, {len(ledger):,} there"
        found.append(Figure(f"ipam.{kind}.allocate_together.at_{fill:.0%}", rate, "1/s", n=SAMPLES[kind], note=note))
        return found


#: A process that allocates argv[3] addresses on the file argv[1] as argv[2], once a line comes in.
_WRITER = """
import asyncio, sys
from pathlib import Path
import benchmarks.ipam_stores as b
async def main():
    store = b.FileStore(Path(sys.argv[1]))
    book = b.AddressBook(store, b.POLICY, attempts=10_000)
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(int(sys.argv[3])):
        await book.ensure(b.owner(f"{sys.argv[2]}-{n}"), b.NOW)
asyncio.run(main())
"""


async def _contention(kind: str, writers: int) -> Figure:
    """File: processes; otherwise tasks, each with a client and an address book of its own."""
    each = CONTENDED[kind] // writers
    if kind == "file":
        seconds = await asyncio.to_thread(_processes, writers, each)
    else:
        async with _stores(kind, writers) as stores:
            books = [AddressBook(store, POLICY, attempts=10_000) for store in stores]

            async def write(number: int) -> None:
                for n in range(each):
                    await books[number].ensure(owner(f"{number}-{n}"), NOW)

            began = time.perf_counter()
            await asyncio.gather(*map(write, range(writers)))
            seconds = time.perf_counter() - began
    what = "processes" if kind == "file" else "clients"
    note = f"{writers} {what} at once on one store, all want the lowest free address"
    return Figure(f"ipam.{kind}.contention.{writers}", each * writers / seconds, "1/s", n=each * writers, note=note)


def _processes(writers: int, each: int) -> float:
    with tempfile.TemporaryDirectory(prefix="rhizome-bench-ipam-") as folder:
        store = str(Path(folder, "ledger"))
        running = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, store, str(number), str(each)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(writers)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        began = time.perf_counter()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        codes = [process.wait() for process in running]
        seconds = time.perf_counter() - began
        for process in running:
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
        if any(codes):
            raise RuntimeError(f"a writer failed: {codes}")
        return seconds


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Rates over fill level, one line for each store and operation, and over the number of writers."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    fills: dict[str, list[tuple[float, float]]] = {}
    writers: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if match := re.fullmatch(r"ipam\.(\w+)\.(\w+)\.at_(\d+)%", row["figure"]):
            fills.setdefault(f"{match[1]}, {match[2].replace('_', ' ')}", []).append((float(match[3]), row["value"]))
        elif match := re.fullmatch(r"ipam\.(\w+)\.contention\.(\d+)", row["figure"]):
            writers.setdefault(match[1], []).append((float(match[2]), row["value"]))
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(3, 2))
    for axes, lines, label in ((left, fills, "how much of the /16 is taken, %"), (right, writers, "writers at once")):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("operations per second")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize=7)
    fig.suptitle("IPAM: operations per second by store", fontsize=10)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
