"""What a ledger in ConfigMaps asks of the API server: few and small requests, pages, and no ConfigMap that is too large."""

from __future__ import annotations

import asyncio
import time
from ipaddress import IPv4Network, IPv6Network

import pytest

import ipam.stores.kubeapi
import ipam.stores.kubernetes as module
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.kubernetes import UnusableShards
from ipam.stores.shards import places
from ipam.usage import contradictions
from tests.contract.kubernetes_store.conftest import COUNT, POLICY, World, owner


async def test_changes_are_noticed_at_once(world: World) -> None:
    store, book = world.store(), world.book()
    await book.ensure(owner("a"), 0.0)
    _, version = await store.read()
    task = asyncio.create_task(store.changed(version))
    await asyncio.sleep(0.05)
    assert not task.done()
    began = time.monotonic()
    await book.ensure(owner("b"), 0.0)
    await asyncio.wait_for(task, 2.0)
    assert time.monotonic() - began < 1.0
    await asyncio.wait_for(store.changed(version), 2.0)  # it was long ago
    assert (await store.read())[1] != version


async def test_a_known_owner_costs_one_small_request(world: World) -> None:
    book = world.book()
    await book.ensure(owner("a"), 0.0)
    await book.ensure(owner("a"), 1.0)
    before = dict(world.server.requests)
    await book.ensure(owner("a"), 2.0)
    assert {m: n - before[m] for m, n in world.server.requests.items() if n != before[m]} == {"GET": 1}


async def test_lists_come_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipam.stores.kubeapi, "PAGE", 3)
    book = AddressBook(world.store(count=8), POLICY)
    await book.ensure(owner("a"), 0.0)
    world.server._moments.clear()
    assert (await world.store().read())[0].get(owner("a")) is not None


async def test_a_shard_that_would_be_too_large_is_not_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES_MAX", 600)
    book = world.book()
    everybody = (book.ensure(owner(f"n{n}"), 0.0) for n in range(99))
    with pytest.raises(UnusableShards, match="begin a ledger with more shards"):
        await asyncio.gather(*everybody)
    ledger, _ = await world.store().read()
    assert not contradictions(ledger)


def test_large_blocks_are_claimed_everywhere_they_reach() -> None:
    _, a = allocate(Ledger(), Policy((Pool(IPv4Network("10.0.0.0/8"), length=23),)), owner("a"), 0.0)
    assert len(set(places(a.blocks[0], COUNT))) == 2
    _, b = allocate(Ledger(), Policy((Pool(IPv6Network("fd00::/32"), length=64),)), owner("b"), 0.0)
    assert set(places(b.blocks[0], COUNT)) == set(range(COUNT))
    small = allocate(Ledger(), Policy((Pool(IPv4Network("10.0.1.0/24")),)), owner("c"), 0.0)[1].blocks[0]
    assert set(places(small, COUNT)) <= set(places(a.blocks[0], COUNT))


async def test_ten_thousand_fit_into_eight_shards(world: World) -> None:
    """So 80,000 fit into the default of 64."""
    before = Ledger()
    policy = Policy((Pool.tunnel(IPv4Network("10.0.0.0/16")), POLICY.pools[1]))
    for n in range(10_000):
        who = Owner("shoot-client", "shoot--garden--x", f"ip-10-250-{n:05}.eu-west-1.compute.internal", f"{n:036}")
        before, _ = allocate(before, policy, who, 1795240000.25, 1797832000.25)
    store = world.store(count=8)
    _, version = await store.read()
    await store.write(before, version)
    ledger, version = await world.store().read()
    assert {a.owner: a for a in ledger} == {a.owner: a for a in before}


async def test_release_needs_the_uid_here_too(world: World) -> None:
    book = world.book()
    ledger = await book.ensure(owner("a"), 0.0)
    store = world.store()
    known, version = await store.read()
    await store.write(release(known, POLICY, ledger.owner, 1.0), version)
    assert (await world.store().read())[0].get(owner("a")).resting  # type: ignore[union-attr]
