"""The IPAM at 60,000 allocations in a /16: time per operation in memory and on disk, time to load, memory per allocation.

Rates by store, fill level and number of writers: ipam_stores.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from statistics import median, quantiles

from benchmarks.figure import Figure
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.networks import Cluster, Plan, Range, Use
from ipam.service import AddressBook
from ipam.stores.file import FileStore
from ipam.stores.log import replay, snapshot

TAKEN = 60_000
SAMPLES = 2_000
NOW = 1_000_000.0
EXPIRES = NOW + 3600.0
IPV4 = Pool.tunnel(IPv4Network("10.0.0.0/16"))
IPV6 = Pool.tunnel(IPv6Network("fd8f:6d53:b97a:1::/96"))
SINGLE = Policy((IPV4,))
DUAL = Policy((IPV4, IPV6))


def run() -> Iterator[Figure]:
    owners = [
        Owner("shoot-client", "shoot--garden--bench", f"node-{n:05}", f"uid-{n:05}") for n in range(TAKEN + SAMPLES)
    ]
    scan = median(_linear_scans())
    for name, policy in (("ipam.allocate_us", SINGLE), ("ipam.allocate_dual_us", DUAL)):
        ledger = _filled(owners[:TAKEN], policy)
        times = []
        for owner in owners[TAKEN:]:
            began = time.perf_counter()
            ledger, _ = allocate(ledger, policy, owner, NOW, EXPIRES)
            times.append(time.perf_counter() - began)
        note = f"in memory, {TAKEN:,} taken; baseline: scan a set for the lowest free address"
        yield Figure(name, median(times) * 1e6, "us", scan * 1e6, SAMPLES, note)
    times = []
    for owner in owners[TAKEN:]:
        began = time.perf_counter()
        ledger = release(ledger, DUAL, owner, NOW)
        times.append(time.perf_counter() - began)
    yield Figure("ipam.release_us", median(times) * 1e6, "us", n=SAMPLES, note="in memory")
    ledger = _filled(owners[:TAKEN], DUAL)
    data = b"".join(snapshot(ledger))
    del ledger
    yield Figure(
        "ipam.memory_per_allocation_bytes", _memory(data) / TAKEN, "B", n=TAKEN, note="IPv4, IPv6 and an expiry"
    )
    with tempfile.TemporaryDirectory(prefix="rhizome-bench-ipam-") as folder:
        yield from asyncio.run(_on_disk(Path(folder, "ledger"), owners))
    yield Figure(
        "ipam.check_10000_seeds_s", _check_seeds(), "s", n=10_000, note="all rules of networks, in a tree of seeds"
    )


def _filled(owners: list[Owner], policy: Policy) -> Ledger:
    ledger = Ledger()
    for owner in owners:
        ledger, _ = allocate(ledger, policy, owner, NOW, EXPIRES)
    return ledger


def _linear_scans() -> Iterator[float]:
    """What the obvious allocator does: count up until an address is not in the set of those taken."""
    first = int(IPV4.network.network_address) + 8
    taken = set(range(first, first + TAKEN))
    for _ in range(20):
        began = time.perf_counter()
        candidate = first
        while candidate in taken:
            candidate += 1
        yield time.perf_counter() - began


def _memory(data: bytes) -> int:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    replayed = replay(Ledger(), data, len(data))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(replayed.ledger) == TAKEN
    return used


async def _on_disk(path: Path, owners: list[Owner]) -> list[Figure]:
    store = FileStore(path)
    await store.write(_filled(owners[:TAKEN], DUAL), (await store.read())[1])
    began = time.perf_counter()
    store = FileStore(path)
    await store.read()
    load = time.perf_counter() - began
    book = AddressBook(store, DUAL)
    commits: list[float] = []
    repeats: list[float] = []
    for times in (commits, repeats):
        for owner in owners[TAKEN:]:
            began = time.perf_counter()
            await book.ensure(owner, NOW, EXPIRES)
            times.append(time.perf_counter() - began)
    sync = median(_bare_appends(path.with_name("bare")))
    note = f"committed to disk, {TAKEN:,} there; baseline: append 250 bytes and sync"
    rebuilt = _rebuild(owners)
    return [
        Figure(
            "ipam.rebuild_65000_s",
            rebuilt,
            "s",
            n=65_000,
            note="the ledger, out of the bytes of a file, in memory; best of 5",
        ),
        Figure("ipam.allocate_file_us", median(commits) * 1e6, "us", sync * 1e6, SAMPLES, note),
        Figure("ipam.allocate_file_p99_us", quantiles(commits, n=100)[98] * 1e6, "us", n=SAMPLES, note="the same, p99"),
        Figure(
            "ipam.known_owner_file_us", median(repeats) * 1e6, "us", n=SAMPLES, note="an owner that has its address"
        ),
        Figure("ipam.load_s", load, "s", note=f"a new process reads a file of {TAKEN:,} allocations"),
    ]


def _rebuild(owners: list[Owner]) -> float:
    more = [Owner("shoot-client", "more", owner.name, owner.uid) for owner in owners[: 65_000 - TAKEN]]
    data = b"".join(snapshot(_filled([*owners[:TAKEN], *more], DUAL)))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        replayed = replay(Ledger(), data, len(data))
        times.append(time.perf_counter() - began)
        assert len(replayed.ledger) == 65_000
    return min(times)


def _check_seeds() -> float:
    """A tree in which every seed is the shoot of another, each generation with the networks of its grandparents."""

    def cluster(n: int) -> Cluster:
        name, age = f"s{n}", n.bit_length() % 2
        nodes = Range(IPv4Network(f"172.{16 + age}.{n % 250}.0/24"), Use.NODES, name, "nodes")
        tunnel = Range(IPv4Network(f"10.{66 + age}.0.0/17"), Use.TUNNEL, name, "tunnel")
        return Cluster(name, f"s{n // 2}" if n > 1 else "", (nodes,), (tunnel,))

    plan = Plan.of(map(cluster, range(1, 10_001)))
    began = time.perf_counter()
    clashes = list(plan.clashes())
    seconds = time.perf_counter() - began
    assert not clashes
    return seconds


def _bare_appends(path: Path) -> Iterator[float]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    for _ in range(200):
        began = time.perf_counter()
        os.write(fd, b"x" * 250)
        os.fdatasync(fd)
        yield time.perf_counter() - began
    os.close(fd)
