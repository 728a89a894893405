"""The ledger in ConfigMaps: what is written where, and who wins; tests/kube has the real API server."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network

import pytest

import ipam.stores.kubernetes as module
from agent.errors import Conflict
from ipam.allocate import allocate
from ipam.ledger import Ledger
from ipam.model import UNCONFIRMED, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.shards import home, places, unconfirmed
from ipam.usage import contradictions
from tests.contract.kubernetes_store.conftest import COUNT, POLICY, World, owner


def places_of(ledger: Ledger, who: Owner) -> int:
    return places(allocate(ledger, POLICY, who, 0.0)[1].blocks[0], COUNT)[0]


async def test_the_first_write_makes_all_shards_the_first_of_them_last(world: World) -> None:
    store = world.store()
    ledger, version = await store.read()
    assert (len(ledger), await world.shards()) == (0, {})
    await store.write(allocate(ledger, POLICY, owner("a"), 0.0)[0], version)
    assert sorted(await world.shards()) == list(range(COUNT))
    assert {a.owner.name for a in (await world.store().read())[0]} == {"a"}


async def test_the_number_of_shards_is_what_the_ledger_has(world: World) -> None:
    await world.book().ensure(owner("a"), 0.0)
    other = AddressBook(world.store(count=9), POLICY)
    assert (await other.ensure(owner("a"), 1.0)).since == 0.0
    await other.ensure(owner("b"), 1.0)
    assert len(await world.shards()) == COUNT


async def test_an_entry_is_at_home_and_its_addresses_are_claimed_in_their_shards(world: World) -> None:
    book = world.book()
    for n in range(20):
        allocation = await book.ensure(owner(f"n{n}"), 0.0)
        shards = await world.shards()
        at_home = home(allocation.owner, COUNT)
        assert shards[at_home].entries[allocation.owner] == allocation
        for block in allocation.blocks:
            (place,) = places(block, COUNT)
            assert place == at_home or shards[place].claims[block] == at_home
    assert list(unconfirmed((await world.shards()).values())) == []


async def test_release_expiry_and_reuse(world: World) -> None:
    book, other = world.book(), world.book()
    first = await book.ensure(owner("a"), 0.0, expires=100.0)
    await other.ensure(owner("b"), 0.0)
    await other.release(owner("b"), 1.0)
    third = await other.ensure(owner("c"), 5000.0)  # a and b are gone, their blocks are handed over in the same step
    assert third.blocks == first.blocks
    ledger, _ = await world.store().read()
    assert {a.owner.name for a in ledger} == {"c"}
    assert list(unconfirmed((await world.shards()).values())) == []


async def test_writers_of_different_shards_do_not_conflict(world: World) -> None:
    """Renewals of owners with different homes, decided on the same state, are both written."""
    book = world.book()
    names = [f"n{n}" for n in range(24)]
    for name in names:
        await book.ensure(owner(name), 0.0, expires=100.0)
    one, two = world.store(), world.store()
    a = next(name for name in names if home(owner(name), COUNT) == 0)
    b = next(name for name in names if home(owner(name), COUNT) == 1)
    (mine, v1), (theirs, v2) = await one.read(), await two.read()
    await one.write(allocate(mine, POLICY, owner(a), 50.0, 150.0)[0], v1)
    await two.write(allocate(theirs, POLICY, owner(b), 50.0, 160.0)[0], v2)
    ledger, _ = await world.store().read()
    assert [ledger.get(owner(name)).expires for name in (a, b)] == [150.0, 160.0]  # type: ignore[union-attr]
    c = next(name for name in names if home(owner(name), COUNT) == 1 and name != b)
    with pytest.raises(Conflict):
        await one.write(allocate(mine, POLICY, owner(c), 50.0, 170.0)[0], v1)


async def test_two_writers_of_one_address_meet_at_its_claim(world: World) -> None:
    await world.book().ensure(owner("first"), 0.0)
    homes = {home(owner(f"n{n}"), COUNT): owner(f"n{n}") for n in range(40)}
    place = places(next(iter(allocate(Ledger(), POLICY, owner("x"), 0.0)[1].blocks)), COUNT)[0]
    one, two, *_ = (homes[n] for n in range(COUNT) if n != place)
    a, b = world.store(), world.store()
    (mine, v1), (theirs, v2) = await a.read(), await b.read()
    await a.write(allocate(mine, POLICY, one, 0.0)[0], v1)
    with pytest.raises(Conflict):
        await b.write(allocate(theirs, POLICY, two, 0.0)[0], v2)
    ledger, _ = await world.store().read()
    assert {x.owner.name for x in ledger} == {"first", one.name}
    assert not contradictions(ledger)
    assert list(unconfirmed((await world.shards()).values())) == []  # the loser cleaned up


async def test_two_writers_for_one_owner_meet_at_its_home(world: World) -> None:
    await world.book().ensure(owner("first"), 0.0)
    a, b = world.store(), world.store()
    (mine, v1), (theirs, v2) = await a.read(), await b.read()
    elsewhere = Policy((Pool(IPv4Network("10.9.0.0/24")),))
    await a.write(allocate(mine, POLICY, owner("x"), 0.0)[0], v1)
    with pytest.raises(Conflict):
        await b.write(allocate(theirs, elsewhere, owner("x"), 0.0)[0], v2)
    held = (await world.store().read())[0].get(owner("x"))
    assert held is not None and len(held.blocks) == 2


async def test_a_writer_that_dies_between_claim_and_entry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any request of a write: nobody else gets what was claimed, until it is reclaimed; then everybody can."""
    await world.book().ensure(owner("first"), 0.0)
    for fatal in range(6):
        name = f"dying-{fatal}"
        store, puts = world.store(), 0
        ledger, version = await store.read()
        after, wanted = allocate(ledger, POLICY, owner(name), 0.0)

        async def until_death(
            known: object, text: str, real: object = store._maps.replace, fatal: int = fatal
        ) -> object:
            nonlocal puts
            puts += 1
            if puts > fatal:
                await asyncio.Event().wait()
            return await real(known, text)  # type: ignore[operator]

        monkeypatch.setattr(store._maps, "replace", until_death)
        task = asyncio.create_task(store.write(after, version))
        await asyncio.wait([task], timeout=0.15)
        alive = not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        seen, _ = await world.store().read()
        other = await world.book().ensure(owner(f"other-{fatal}"), 0.0)
        if (held := seen.get(owner(name))) is not None:
            assert held == wanted
        assert not set(other.blocks) & (set(wanted.blocks) if held else set())
        again = await world.book().ensure(owner(name), 0.0)
        assert held is None or again == held
        if not alive:
            break
    else:
        raise AssertionError("a write takes more requests than that?")
    assert fatal >= 2
    monkeypatch.setattr(module, "CLAIM_GRACE_S", 0.0)
    store = world.store()
    await store.read()
    ledger, _ = await store.read()
    assert not [a for a in ledger if a.owner.kind == UNCONFIRMED]
    assert not contradictions(ledger)
    assert list(unconfirmed((await world.shards()).values())) == []


async def test_a_reclaim_comes_before_an_entry_that_is_still_on_its_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer falls asleep after its claims. They are taken back and given to another; when it wakes up, it loses."""
    await world.book().ensure(owner("first"), 0.0)
    slow, gate, puts = world.store(), asyncio.Event(), 0
    ledger, version = await slow.read()
    sleeper = next(o for n in range(99) if home(o := owner(f"s{n}"), COUNT) not in (0, places_of(ledger, o)))
    after, wanted = allocate(ledger, POLICY, sleeper, 0.0)
    claims = len({place for block in wanted.blocks for place in places(block, COUNT)} - {home(sleeper, COUNT)})
    real = slow._maps.replace

    async def sleepy(known: object, text: str) -> object:
        nonlocal puts
        puts += 1
        if puts == claims + 1:
            await gate.wait()
        return await real(known, text)  # type: ignore[arg-type]

    monkeypatch.setattr(slow._maps, "replace", sleepy)
    task = asyncio.create_task(slow.write(after, version))
    while puts <= claims:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(module, "CLAIM_GRACE_S", 0.0)
    other = await world.book().ensure(owner("quick"), 0.0)
    assert other.blocks == wanted.blocks
    gate.set()
    with pytest.raises(Conflict):
        await task
    seen, _ = await world.store().read()
    assert seen.get(sleeper) is None
    assert not contradictions(seen)
