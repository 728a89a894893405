"""What every store promises, asked of all of them; and what the file store promises to processes that are killed."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import httpx2
import pytest

from agent.errors import Conflict
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store, Version
from ipam.stores.file import FileStore
from ipam.stores.kubeapi import ConfigMaps
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.log import history_path
from ipam.stores.memory import MemoryStore
from lab.apiserver import ApiServer
from lab.ipam import processes

POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/20")), Pool.tunnel(IPv6Network("fd00::/96"))))


def owner(name: str) -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, "uid")


@pytest.fixture(params=["memory", "file", "kubernetes"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param != "kubernetes":
        yield MemoryStore() if request.param == "memory" else FileStore(tmp_path / "ledger")
        return
    server = ApiServer()
    async with httpx2.AsyncClient(base_url=await server.start()) as api:
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
    waiting = asyncio.create_task(store.changed(version))
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


def test_processes_that_are_killed_at_any_moment_never_share_an_address(tmp_path: Path) -> None:
    """The same with 32 processes and 10,000 operations each is recorded: docs/benchmarks."""
    accounts = processes.run(tmp_path, 3, 200, kills=3)
    assert (accounts.duplicates, accounts.lost, accounts.leaked_after_gc) == (0, 0, 0)
    assert accounts.operations >= 600
    assert history_path(tmp_path / "ledger").exists()  # it was written anew in between
