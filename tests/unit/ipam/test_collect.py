import logging
from collections.abc import Set
from ipaddress import IPv4Network

import pytest

from agent.errors import StoreError
from ipam.gc import GarbageCollector
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.memory import MemoryStore

POLICY = Policy((Pool(IPv4Network("10.0.0.0/27")),))


def owner(name: str, uid: str = "u", kind: str = "node") -> Owner:
    return Owner(kind, "ns", name, uid)


class World:
    """An address book, and who lives according to the authority."""

    def __init__(self) -> None:
        self.book = AddressBook(MemoryStore(), POLICY)
        self.alive: list[Set[Owner]] = []
        self.collector = GarbageCollector(self.book, self.living, lambda owner: owner.kind == "node", grace_s=900.0)

    async def living(self) -> Set[Owner]:
        return self.alive.pop(0) if len(self.alive) > 1 else self.alive[0]

    async def held(self) -> set[str]:
        return {a.owner.name for a in await self.book.ledger() if not a.resting}


@pytest.fixture
async def world() -> World:
    world = World()
    for name in "abc":
        await world.book.ensure(owner(name), 0.0)
    await world.book.ensure(owner("x", kind="other"), 0.0)
    return world


async def test_an_owner_is_released_when_it_was_missing_all_the_time(world: World) -> None:
    world.alive = [{owner("a"), owner("b")}]
    assert (await world.collector.run_once(1000.0, 0.0)).candidates == 1
    assert (await world.collector.run_once(1899.0, 899.0)).released == ()
    done = await world.collector.run_once(1900.0, 900.0)
    assert [a.owner.name for a in done.released] == ["c"]
    assert await world.held() == {"a", "b", "x"}
    resting = (await world.book.ledger()).get(owner("c"))
    assert resting is not None and resting.rests_until == 1900.0 + 360.0
    assert (await world.collector.run_once(1901.0, 901.0)).candidates == 0


async def test_a_stale_list_frees_nobody_who_is_in_the_next(world: World) -> None:
    everybody = {owner(name) for name in "abc"}
    world.alive = [set()]
    await world.collector.run_once(0.0, 0.0)
    world.alive = [everybody]
    await world.collector.run_once(500.0, 500.0)
    world.alive = [set()]
    assert (await world.collector.run_once(1000.0, 1000.0)).released == ()  # counted from here again
    world.alive = [set(), everybody]  # the list just before the release knows better
    assert (await world.collector.run_once(1900.0, 1900.0)).released == ()
    assert await world.held() == {"a", "b", "c", "x"}


async def test_an_owner_that_changed_its_allocation_is_not_gone(world: World) -> None:
    world.alive = [{owner("a"), owner("b")}]
    await world.collector.run_once(0.0, 0.0)
    await world.book.ensure(owner("c"), 800.0, expires=5000.0)
    assert (await world.collector.run_once(900.0, 900.0)).released == ()
    assert (await world.collector.run_once(1799.0, 1799.0)).released == ()
    assert len((await world.collector.run_once(1800.0, 1800.0)).released) == 1


async def test_another_incarnation_of_the_name_does_not_save_the_old_one_nor_does_the_old_one_take_it_along(
    world: World,
) -> None:
    await world.book.ensure(owner("c", "new"), 0.0)
    world.alive = [{owner("a"), owner("b"), owner("c", "new")}]
    await world.collector.run_once(0.0, 0.0)
    done = await world.collector.run_once(900.0, 900.0)
    assert [a.owner for a in done.released] == [owner("c")]
    assert "c" in await world.held()


async def test_so_many_at_once_are_only_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.book.ensure(owner("d"), 0.0)
    world.alive = [set()]
    await world.collector.run_once(0.0, 0.0)
    done = await world.collector.run_once(900.0, 900.0)
    assert done.withheld == ("4 of the 32 blocks of pool 10.0.0.0/27",)
    assert (len(done.ripe), done.released) == (4, ())
    assert "nothing is released: it would be 4 of the 32" in caplog.text
    with caplog.at_level(logging.INFO):
        assert len((await world.collector.run_once(901.0, 901.0, force=True)).released) == 4


async def test_without_a_list_nothing_happens(world: World) -> None:
    async def broken() -> Set[Owner]:
        raise StoreError("timed out")

    world.alive = [set()]
    await world.collector.run_once(0.0, 0.0)
    collector = GarbageCollector(world.book, broken, lambda owner: True)
    with pytest.raises(StoreError):
        await collector.run_once(0.0, 0.0)
    assert len(await world.held()) == 4
