"""The IPAM's promises as a state machine: two processes on one store, against a plain model of who holds what.

The model knows nothing of ledgers, pages or logs: it keeps sets of addresses and looks for the lowest free one by trying all.
The last tests take a safeguard away and demand that the machine notices.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import ipam.allocate
import ipam.service
import ipam.stores.file
from agent.errors import Conflict, PoolExhausted, StoreError
from ipam.allocate import allocate
from ipam.ledger import Ledger
from ipam.model import Allocation, NotOwner, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store, Version
from ipam.stores.file import FileStore
from ipam.stores.memory import MemoryStore

T = TypeVar("T")
Name = tuple[str, str]  # name and UID; not an Owner, whose own equality is under test

IPV4 = Pool(IPv4Network("10.0.0.0/28"), (IPv4Network("10.0.0.0/30"), IPv4Network("10.0.0.8/31")))  # ten addresses
IPV6 = Pool(IPv6Network("fd00::/125"), (IPv6Network("fd00::/127"), IPv6Network("fd00::6/128")))  # five
POLICY = Policy((IPV4, IPV6), quarantine_s=360.0)
FREE_FOR_ALL = [[str(a) for a in p.network if not any(a in r for r in p.reserved)] for p in POLICY.pools]

owners = st.builds(Owner, st.just("k"), st.just("ns"), st.sampled_from("abcdef"), st.sampled_from(["one", "two"]))
actors = st.sampled_from([0, 1])


@dataclass
class Held:
    """One entry of the model: the addresses, when they expire, and if they were given back, until when they rest."""

    addresses: list[str]
    expires: float | None
    rests_until: float | None = None


def name_of(owner: Owner) -> Name:
    return owner.name, owner.uid


@dataclass
class Decision:
    """What a process that fell asleep will write when it wakes up, and what it read before."""

    actor: int
    owner: Owner
    expected: list[str]
    ledger: Ledger
    version: Version
    generation_read: int


class Machine(RuleBasedStateMachine):
    """Two address books, each with its own store object, on one memory or file."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.model: dict[Name, Held] = {}
        self.decided: Decision | None = None

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        if self.folder is not None:
            self.folder.cleanup()

    folder: tempfile.TemporaryDirectory[str] | None = None

    @initialize(on_disk=st.booleans())
    def begin(self, on_disk: bool) -> None:
        if on_disk:
            self.folder = tempfile.TemporaryDirectory(prefix="rhizome-ipam-")
            self.path = Path(self.folder.name, "ledger")
        self.memory = MemoryStore()
        self.stores = [self.fresh(), self.fresh()]

    def fresh(self) -> Store:
        return FileStore(self.path) if self.folder is not None else self.memory

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def book(self, actor: int) -> AddressBook:
        return AddressBook(self.stores[actor], POLICY)

    def let_time_pass_in_the_model(self) -> None:
        for name, held in list(self.model.items()):
            if held.rests_until is None and held.expires is not None and held.expires <= self.now:
                held.rests_until = held.expires + POLICY.quarantine_s
            if held.rests_until is not None and held.rests_until <= self.now:
                del self.model[name]

    def lowest_free(self) -> list[str] | None:
        taken = set(itertools.chain(*(held.addresses for held in self.model.values())))
        found = [next((a for a in addresses if a not in taken), None) for addresses in FREE_FOR_ALL]
        return None if None in found else [a for a in found if a is not None]

    @rule(actor=actors, owner=owners, lifetime=st.none() | st.sampled_from([60.0, 3600.0]))
    def ensure(self, actor: int, owner: Owner, lifetime: float | None) -> None:
        self.let_time_pass_in_the_model()
        expires = None if lifetime is None else self.now + lifetime
        held = self.model.get(name_of(owner))
        expected = held.addresses if held is not None else self.lowest_free()
        if expected is None:
            with pytest.raises(PoolExhausted):
                self.run(self.book(actor).ensure(owner, self.now, expires))
            return
        allocation = self.run(self.book(actor).ensure(owner, self.now, expires))
        assert list(map(str, allocation.addresses)) == expected
        self.model[name_of(owner)] = Held(expected, expires)

    @rule(actor=actors, owner=owners)
    def release(self, actor: int, owner: Owner) -> None:
        self.let_time_pass_in_the_model()
        held = self.model.get(name_of(owner))
        siblings = [n for n, h in self.model.items() if n[0] == owner.name and h.rests_until is None]
        if held is None and siblings:
            with pytest.raises(NotOwner):
                self.run(self.book(actor).release(owner, self.now))
            return
        self.run(self.book(actor).release(owner, self.now))
        if held is not None and held.rests_until is None:
            held.rests_until = self.now + POLICY.quarantine_s

    @rule(seconds=st.sampled_from([1.0, 59.0, 60.0, 359.0, 360.0, 5000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(actor=actors, owner=owners)
    def decide_and_fall_asleep(self, actor: int, owner: Owner) -> None:
        """A process reads, decides, and is scheduled away before it writes."""
        self.let_time_pass_in_the_model()
        held = self.model.get(name_of(owner))
        expected = held.addresses if held is not None else self.lowest_free()
        ledger, version = self.run(self.stores[actor].read())
        if expected is not None:
            after, _ = allocate(ledger, POLICY, owner, self.now)
            if after.generation > ledger.generation:
                self.decided = Decision(actor, owner, expected, after, version, ledger.generation)

    @precondition(lambda self: self.decided is not None)
    @rule()
    def wake_up_and_write(self) -> None:
        decided, self.decided = self.decided, None
        assert decided is not None
        store = self.stores[decided.actor]
        current, _ = self.run(store.read())
        if current.generation == decided.generation_read:
            self.run(store.write(decided.ledger, decided.version))
            self.model[name_of(decided.owner)] = Held(decided.expected, None)
        else:
            with pytest.raises(Conflict):
                self.run(store.write(decided.ledger, decided.version))

    @rule(actor=actors)
    def restart(self, actor: int) -> None:
        self.stores[actor] = self.fresh()

    @precondition(lambda self: self.folder is not None and self.path.exists())
    @rule(actor=actors, torn=st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")))
    def crash_in_the_middle_of_a_write(self, actor: int, torn: bytes) -> None:
        with self.path.open("ab") as out:
            out.write(torn)
        self.stores[actor] = self.fresh()

    @invariant()
    def every_address_has_one_holder(self) -> None:
        if not hasattr(self, "stores"):
            return
        for store in self.stores:
            ledger, _ = self.run(store.read())
            seen: dict[str, Name] = {}
            for allocation in ledger:
                assert len(allocation.blocks) == len(POLICY.pools)
                for address, free in zip(map(str, allocation.addresses), FREE_FOR_ALL, strict=True):
                    assert address in free
                    assert seen.setdefault(address, name_of(allocation.owner)) == name_of(allocation.owner)
            assert sum(ledger.used_in(pool) for pool in POLICY.pools) == len(seen)
            for (name, uid), held in self.model.items():
                known = ledger.get(Owner("k", "ns", name, uid))
                assert known is not None
                assert [str(address) for address in known.addresses] == held.addresses


QUICK = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def test_ipam_keeps_its_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipam.stores.file, "SPARE_LINES", 6)  # so that the log is rewritten now and then
    run_state_machine_as_test(Machine, settings=QUICK)


def without_compare_and_swap(patch: pytest.MonkeyPatch) -> None:
    async def write(self: MemoryStore, ledger: Ledger, version: Version) -> None:
        self._ledger = ledger

    patch.setattr(MemoryStore, "write", write)


def without_the_uid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Owner, "__eq__", lambda a, b: (a.kind, a.namespace, a.name) == (b.kind, b.namespace, b.name))
    patch.setattr(Owner, "__hash__", lambda a: hash((a.kind, a.namespace, a.name)))


def without_quarantine(patch: pytest.MonkeyPatch) -> None:
    original = ipam.allocate.release
    no_rest = replace(POLICY, quarantine_s=0.0)
    patch.setattr(ipam.service, "release", lambda ledger, _policy, owner, now: original(ledger, no_rest, owner, now))


def without_stickiness(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "get", lambda self, owner: None)


def without_the_other_family(patch: pytest.MonkeyPatch) -> None:
    original = ipam.allocate.allocate

    def lenient(ledger: Ledger, policy: Policy, *args: Any) -> tuple[Ledger, Allocation]:
        try:
            return original(ledger, policy, *args)
        except PoolExhausted:
            return original(ledger, Policy(policy.pools[:1]), *args)

    patch.setattr(ipam.service, "allocate", lenient)


def without_the_lowest(patch: pytest.MonkeyPatch) -> None:
    original = Ledger.lowest_free

    def second(self: Ledger, pool: Pool, after: int | None = None) -> Any:
        first = original(self, pool)
        return first and (original(replace_used(self, first), pool) or first)

    def replace_used(ledger: Ledger, block: Any) -> Ledger:
        return ledger.apply(
            [Allocation(Owner("x", "x", "x", "x"), (block,), ledger.generation, 0.0)], (), ledger.generation
        )

    patch.setattr(Ledger, "lowest_free", second)


@pytest.mark.parametrize(
    "mutation",
    [
        without_compare_and_swap,
        without_the_uid,
        without_quarantine,
        without_stickiness,
        without_the_other_family,
        without_the_lowest,
    ],
)
def test_a_missing_safeguard_is_noticed(mutation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    once = settings(
        QUICK, max_examples=300, phases=(Phase.generate,), database=None, derandomize=True, report_multiple_bugs=False
    )
    with pytest.raises((AssertionError, pytest.fail.Exception, StoreError)):
        run_state_machine_as_test(Machine, settings=once)
