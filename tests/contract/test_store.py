"""What every store promises, asked of all of them; and what the file store promises to processes that are killed."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from kubernetes.aio import client

from agent.errors import Conflict
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store, Version
from ipam.stores.file import FileStore
from ipam.stores.kubeapi import ConfigMaps
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.memory import MemoryStore
from lab.apiserver import ApiServer

POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/20")), Pool.tunnel(IPv6Network("fd00::/96"))))


def owner(name: str) -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, "uid")


@pytest.fixture(params=["memory", "file", "kubernetes"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param != "kubernetes":
        yield MemoryStore() if request.param == "memory" else FileStore(tmp_path / "ledger")
        return
    server = ApiServer()
    settings = client.Configuration(host=await server.start())
    async with client.ApiClient(settings) as api:
        yield KubernetesStore(ConfigMaps(api, "garden", "ledger"), "ledger", 4)
    await server.stop()


def content(ledger: Ledger) -> object:
    return ledger.generation, {a.owner: a for a in ledger}, dict(ledger.used.items())


async def test_a_new_store_is_empty(store: Store) -> None:
    ledger, _ = await store.read()
    assert content(ledger) == content(Ledger())


async def test_what_is_written_is_read(store: Store) -> None:
    for step in range(12):
        ledger, version = await store.read()
        after, _ = allocate(ledger, POLICY, owner(f"o{step}"), step * 100.0, step * 100.0 + 250 if step % 2 else None)
        if step % 3 == 2:
            after = release(after, POLICY, owner(f"o{step - 2}"), step * 100.0)
        await store.write(after, version)
        read, new_version = await store.read()
        assert content(read) == content(after)
        assert new_version != version


async def test_reading_changes_nothing(store: Store) -> None:
    assert (await store.read())[1] == (await store.read())[1]


async def test_the_second_of_two_writers_loses_and_nothing_of_it_stays(store: Store) -> None:
    ledger, version = await store.read()
    mine, theirs = (allocate(ledger, POLICY, owner(name), 0.0)[0] for name in ("mine", "theirs"))
    await store.write(theirs, version)
    with pytest.raises(Conflict):
        await store.write(mine, version)
    assert content((await store.read())[0]) == content(theirs)


@pytest.mark.parametrize("version", ["", "absent", "0", "1", "x:1"])
async def test_a_made_up_version_loses(store: Store, version: str) -> None:
    await store.write(allocate(Ledger(), POLICY, owner("a"), 0.0)[0], (await store.read())[1])
    await store.write(allocate((await store.read())[0], POLICY, owner("b"), 0.0)[0], (await store.read())[1])
    ledger, _ = await store.read()
    with pytest.raises(Conflict):
        await store.write(allocate(ledger, POLICY, owner("c"), 0.0)[0], Version(version))


async def test_a_ledger_that_is_not_newer_loses(store: Store) -> None:
    await store.write(allocate(Ledger(), POLICY, owner("a"), 0.0)[0], (await store.read())[1])
    ledger, version = await store.read()
    for other in (ledger, Ledger.of([], ledger.generation)):
        with pytest.raises(Conflict, match="cannot follow"):
            await store.write(other, version)


async def test_a_change_is_noticed(store: Store) -> None:
    ledger, version = await store.read()
    waiting = asyncio.create_task(store.changed(version))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    await store.write(allocate(ledger, POLICY, owner("a"), 0.0)[0], version)
    await asyncio.wait_for(waiting, 5.0)
    await asyncio.wait_for(store.changed(version), 5.0)
    assert (await store.read())[1] != version


async def test_contending_writers_all_get_an_address_of_their_own(store: Store) -> None:
    books = [AddressBook(store, POLICY, attempts=200) for _ in range(4)]
    allocations = await asyncio.gather(*(books[n % 4].ensure(owner(f"o{n}"), 0.0) for n in range(32)))
    assert len({a.blocks[0] for a in allocations}) == 32
    assert max(a.blocks[0].number for a in allocations) - min(a.blocks[0].number for a in allocations) == 31


#: Allocates and releases without end on the store at argv[1], as argv[2]; says on stdout what it was granted.
WORKER = """
import asyncio, json, random, sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
import ipam.stores.file
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook

ipam.stores.file.SPARE_LINES = 30  # so that the file is rewritten many times
POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/20")), Pool.tunnel(IPv6Network("fd00::/96"))))

async def main():
    book = AddressBook(ipam.stores.file.FileStore(Path(sys.argv[1])), POLICY, attempts=1000)
    mine = []
    for n in range(1_000_000):
        owner = Owner("worker", "ns", f"{sys.argv[2]}-{n}", "uid")
        granted = await book.ensure(owner, 0.0)
        print(json.dumps([owner.name, list(map(str, granted.blocks))]), flush=True)
        mine.append(owner)
        if random.random() < 0.3:
            await book.release(mine.pop(random.randrange(len(mine))), 0.0)
asyncio.run(main())
"""


@contextmanager
def worker(path: Path, name: str, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    with out.open("wb") as stdout:
        process = subprocess.Popen([sys.executable, "-c", WORKER, str(path), name], stdout=stdout)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_processes_that_are_killed_at_any_moment_never_share_an_address(tmp_path: Path) -> None:
    """Three processes at a time on one file, each killed after a random while and followed by another. Time stands still, so
    no quarantine ends: an address that was ever told to two owners is a double allocation."""
    path, outs = tmp_path / "ledger", []
    ends = time.monotonic() + 2.0

    def slot(number: int) -> None:
        rng, runs = random.Random(number), 0
        while time.monotonic() < ends or runs < 3:
            runs += 1
            out = tmp_path / f"{number}-{rng.getrandbits(64):x}.out"
            outs.append(out)
            with worker(path, out.stem, out) as process:
                while not out.stat().st_size and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.4))
                assert process.poll() is None, "it ended by itself"

    with ThreadPoolExecutor() as pool:
        list(pool.map(slot, range(3)))

    told: dict[str, str] = {}
    for out in outs:
        for line in out.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                name, blocks = json.loads(line)
                for block in blocks:
                    assert told.setdefault(block, name) == name
    ledger, _ = asyncio.run(FileStore(path).read())
    known = {str(block): allocation.owner.name for allocation in ledger for block in allocation.blocks}
    assert told.items() <= known.items()  # what was granted is on disk
    assert len(known) - len(told) <= 2 * len(outs)  # of each process, at most the last grant was never told
    assert len(outs) >= 9
