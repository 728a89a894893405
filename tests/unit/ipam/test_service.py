import asyncio
import logging
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from agent.errors import Conflict, PoolExhausted, StoreError
from ipam.ledger import Ledger
from ipam.model import NotOwner, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Version
from ipam.stores.memory import MemoryStore

POLICY = Policy((Pool.tunnel(IPv4Network("192.168.128.0/17")), Pool.tunnel(IPv6Network("fd8f:6d53:b97a:1::/96"))))


def owner(name: str, uid: str = "uid") -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, uid)


class Contended(MemoryStore):
    """Somebody else writes just before each of our first `rivals` writes."""

    def __init__(self, rivals: int) -> None:
        super().__init__()
        self.rivals = rivals
        self.reads = self.writes = 0

    async def read(self) -> tuple[Ledger, Version]:
        self.reads += 1
        await asyncio.sleep(0)
        return await super().read()

    async def write(self, ledger: Ledger, version: Version) -> None:
        self.writes += 1
        if self.rivals:
            self.rivals -= 1
            book = AddressBook(self._as_memory(), POLICY)
            await book.ensure(owner(f"rival-{self.rivals}"), 0.0)
        await super().write(ledger, version)

    def _as_memory(self) -> MemoryStore:
        rival = MemoryStore.__new__(MemoryStore)
        rival.__dict__ = self.__dict__
        return rival


class Unreadable(MemoryStore):
    async def read(self) -> tuple[Ledger, Version]:
        raise StoreError("cannot read")


class Forgetful(MemoryStore):
    """The write happens, the answer is lost."""

    async def write(self, ledger: Ledger, version: Version) -> None:
        await super().write(ledger, version)
        raise StoreError("timed out")


async def test_addresses_of_both_families_past_the_servers() -> None:
    book = AddressBook(MemoryStore(), POLICY)
    first = await book.ensure(owner("a"), now=0.0)
    assert first.addresses == (IPv4Address("192.168.128.8"), IPv6Address("fd8f:6d53:b97a:1::8"))
    assert (await book.ensure(owner("b"), now=0.0)).addresses[0] == IPv4Address("192.168.128.9")
    assert await book.ensure(owner("a"), now=9.0) == first


async def test_a_known_owner_costs_no_write() -> None:
    store = Contended(0)
    book = AddressBook(store, POLICY)
    await book.ensure(owner("a"), 0.0)
    await book.ensure(owner("a"), 1.0)
    assert (store.reads, store.writes) == (2, 1)


async def test_lost_races_are_run_again() -> None:
    store = Contended(3)
    allocation = await AddressBook(store, POLICY).ensure(owner("a"), 0.0)
    ledger, _ = await store.read()
    assert store.writes == 4
    assert len(ledger) == 4
    assert ledger.get(owner("a")) == allocation
    assert allocation.addresses[0] == IPv4Address("192.168.128.11")


async def test_too_many_lost_races_are_an_error_in_words() -> None:
    with pytest.raises(Conflict, match="3 times in a row"):
        await AddressBook(Contended(99), POLICY, attempts=3).ensure(owner("a"), 0.0)


async def test_calls_of_one_process_do_not_race() -> None:
    store = Contended(0)
    book = AddressBook(store, POLICY)
    allocations = await asyncio.gather(*(book.ensure(owner(f"n{n}"), 0.0) for n in range(50)))
    assert len({allocation.addresses for allocation in allocations}) == 50
    assert store.writes == 2  # the first one alone, then all that had come meanwhile


async def test_what_one_call_cannot_have_does_not_concern_the_others() -> None:
    small = Policy((Pool(IPv4Network("10.0.0.0/30")),))
    book = AddressBook(MemoryStore(), small)
    answers = await asyncio.gather(*(book.ensure(owner(f"n{n}"), 0.0) for n in range(6)), return_exceptions=True)
    assert [isinstance(answer, PoolExhausted) for answer in answers] == [False] * 4 + [True] * 2


async def test_a_caller_that_gives_up_takes_nobody_along() -> None:
    class Slow(MemoryStore):
        async def write(self, ledger: Ledger, version: Version) -> None:
            await asyncio.sleep(0.01)
            await super().write(ledger, version)

    book = AddressBook(Slow(), POLICY)
    tasks = [asyncio.create_task(book.ensure(owner(f"n{n}"), 0.0)) for n in range(5)]
    await asyncio.sleep(0.015)  # the first is through, the second writes for all others
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert len({a.blocks for a in (answers[0], *answers[2:])}) == 4  # type: ignore[union-attr]


async def test_a_pool_that_fills_up_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    book = AddressBook(MemoryStore(), Policy((Pool(IPv4Network("10.0.0.0/28")),)))
    for n in range(16):
        await book.ensure(owner(f"n{n}"), 0.0)
    told = [r.getMessage() for r in caplog.records if getattr(r, "event", "") == "pool.filling"]
    assert told == [f"pool 10.0.0.0/28 is {n}% taken: widen it before it is full" for n in (81, 100)]
    assert book.usage()[0][1].free == 0


async def test_nothing_is_granted_from_a_ledger_that_was_not_read() -> None:
    with pytest.raises(StoreError, match="cannot read"):
        await AddressBook(Unreadable(), POLICY).ensure(owner("a"), 0.0)


async def test_a_lost_answer_is_resolved_by_asking_again() -> None:
    store = Forgetful()
    with pytest.raises(StoreError, match="timed out"):
        await AddressBook(store, POLICY).ensure(owner("a"), 0.0)
    ledger, _ = await store.read()
    assert await AddressBook(store, POLICY).ensure(owner("a"), 5.0) == ledger.get(owner("a"))
    assert len(ledger) == 1


async def test_release_and_its_quarantine() -> None:
    book = AddressBook(MemoryStore(), POLICY)
    first = await book.ensure(owner("a"), 0.0)
    with pytest.raises(NotOwner):
        await book.release(owner("a", "other"), 1.0)
    await book.release(owner("a"), 1.0)
    assert not set((await book.ensure(owner("b"), 360.0)).blocks) & set(first.blocks)
    assert (await book.ensure(owner("c"), 361.0)).blocks == first.blocks


async def test_exhaustion_leaves_the_others_alone() -> None:
    book = AddressBook(MemoryStore(), Policy((Pool(IPv4Network("10.0.0.0/31")),)))
    first = [await book.ensure(owner(name), 0.0) for name in "ab"]
    with pytest.raises(PoolExhausted):
        await book.ensure(owner("c"), 1.0)
    assert [await book.ensure(owner(name), 2.0) for name in "ab"] == first


async def test_transitions_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rhizome.ipam")
    book = AddressBook(MemoryStore(), POLICY)
    for now in (0.0, 1.0):
        await book.ensure(owner("a"), now, expires=now + 3600)
    for now in (2.0, 3.0):
        await book.release(owner("a"), now)
    assert [(r.event, r.getMessage()) for r in caplog.records] == [  # type: ignore[attr-defined]
        ("address.granted", "shoot-client shoot--a--b/a (uid) has 192.168.128.8, fd8f:6d53:b97a:1::8"),
        ("address.released", "shoot-client shoot--a--b/a (uid) released its addresses"),
    ]
