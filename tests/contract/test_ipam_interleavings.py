"""Every interleaving of two operations by three actors, each with an address book of its own on one store."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from ipaddress import IPv4Network
from typing import Any

import pytest

import ipam.service
from agent.errors import PoolExhausted
from ipam.ledger import Ledger
from ipam.model import Allocation, NotOwner, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store, Version
from ipam.stores.memory import MemoryStore
from ipam.usage import contradictions
from lab.ipam.interleave import explore

POLICY = Policy((Pool(IPv4Network("10.0.0.0/31")),))  # two addresses
Act = Callable[[AddressBook], Coroutine[Any, Any, object]]
Actor = Callable[[Store], Coroutine[Any, Any, list[object]]]


def give(name: str, uid: str = "u", expires: float | None = None) -> Act:
    return lambda book: book.ensure(Owner("k", "ns", name, uid), 0.0, expires)


def take(name: str, uid: str = "u") -> Act:
    return lambda book: book.release(Owner("k", "ns", name, uid), 1.0)


def actor(*acts: Act) -> Actor:
    async def run(store: Store) -> list[object]:
        book, results = AddressBook(store, POLICY, attempts=20), []
        for act in acts:
            try:
                results.append(await act(book))
            except (PoolExhausted, NotOwner) as exc:
                results.append(type(exc))
        return results

    return run


SCENES = {
    "three owners for two addresses": (actor(give("a")), actor(give("b")), actor(give("c"))),
    "one owner": (actor(give("a"), give("a")), actor(give("a")), actor(give("a", expires=9.0))),
    "give and take": (actor(give("a"), take("a")), actor(give("a")), actor(give("b"), take("a"))),
    "a successor and a late release": (actor(give("a", "old")), actor(give("a", "new")), actor(take("a", "old"))),
    "two each": (actor(give("a"), take("a")), actor(give("a"), give("b")), actor(give("b"), take("a"))),
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_seconds: float) -> None:
        return None

    monkeypatch.setattr("ipam.service.asyncio.sleep", at_once)


def check(ledger: Ledger) -> None:
    assert not contradictions(ledger)


def told_is_stored(ledger: Ledger, results: dict[int, list[object]]) -> None:
    """What was granted and never released is what is stored; nobody was told two things; nobody gets what rests."""
    told: dict[Owner, Allocation] = {}
    for each in (result for acts in results.values() for result in acts):
        if isinstance(each, Allocation) and not each.resting:
            assert told.setdefault(each.owner, each).blocks == each.blocks
    blocks = [block for allocation in told.values() for block in allocation.blocks]
    assert len(blocks) == len(set(blocks))  # quarantine has not ended for anybody
    for owner, allocation in told.items():
        stored = ledger.get(owner)
        assert stored is not None and stored.blocks == allocation.blocks
    if len(told) < len({a.owner for a in ledger}):
        raise AssertionError("somebody holds something and was not told")


@pytest.mark.parametrize("name", SCENES)
def test_every_interleaving(name: str) -> None:
    states, ends = explore(SCENES[name], check, told_is_stored)
    assert states > 50 and ends > 5


def test_without_compare_and_swap_one_of_them_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async def write(self: MemoryStore, ledger: Ledger, version: Version) -> None:
        self._ledger = ledger

    monkeypatch.setattr(MemoryStore, "write", write)
    with pytest.raises(AssertionError):
        explore(SCENES["three owners for two addresses"], check, told_is_stored)


def test_a_decision_on_an_old_state_that_is_not_made_again_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost race, the service writes what it had decided before."""
    original = ipam.service.AddressBook._decide
    decided: dict[int, Ledger] = {}

    def decide(self: AddressBook, batch: Any, ledger: Ledger) -> Ledger:
        first = decided.setdefault(id(batch[0]), original(self, batch, ledger))
        return Ledger.of(first, ledger.generation + 1)

    monkeypatch.setattr(ipam.service.AddressBook, "_decide", decide)
    with pytest.raises(AssertionError):
        explore(SCENES["three owners for two addresses"], check, told_is_stored)
