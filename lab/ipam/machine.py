"""The IPAM against its model, by hypothesis: two processes on one store of any kind, and everything that can go wrong.

Rules: allocate, renew, release with the right and the wrong UID, the same name under a new UID, time that passes, a clock that is stepped forth and
back, pools that are grown, shrunk, cut differently and removed, a process that decides on a state and writes much later, a write that was done although
nobody heard of it, one that was not done, a process that dies before or after any of its requests, a torn file, restarts, garbage collection with lists
that are right, stale or cut short.

After each step: every process sees what the model knows, no two owners share an address, and used, resting, kept and free blocks of every pool
add up to its size.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Set
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import ipam.stores.kubernetes
from agent.errors import Conflict, PoolExhausted, StoreError
from ipam.allocate import allocate
from ipam.gc import GarbageCollector
from ipam.ledger import Ledger
from ipam.model import UNCONFIRMED, Allocation, NotOwner, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store, Version
from ipam.stores.file import FileStore
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.memory import MemoryStore
from ipam.usage import contradictions, usage
from lab.ipam.maps import Client, Fault, Killed, Server
from lab.ipam.model import Full, Held, Model, Name, NotYours, addresses, candidates, from_pool

T = TypeVar("T")

KINDS = ("memory", "file", "kubernetes")
SHARDS = 3
GRACE_S = 900.0
RESERVED = (IPv4Network("10.0.0.0/30"), IPv4Network("10.0.0.8/31"))
IPV6 = Pool(IPv6Network("fd00::/125"), (IPv6Network("fd00::/127"), IPv6Network("fd00::6/128")))
#: What the operator may make of the pools: the first is how it begins.
POLICIES = (
    Policy((Pool(IPv4Network("10.0.0.0/28"), RESERVED), IPV6)),
    Policy((Pool(IPv4Network("10.0.0.0/27"), RESERVED), IPV6)),  # grown
    Policy((Pool(IPv4Network("10.0.0.0/29"), RESERVED[:1]), IPV6)),  # shrunk
    Policy((Pool(IPv4Network("10.0.0.0/28"), length=30), IPV6)),  # cut into blocks
    Policy((Pool(IPv4Network("10.0.0.8/29")),)),  # another one, which overlaps; no IPv6
    Policy((IPV6, Pool(IPv4Network("10.0.0.16/28"), length=31))),
)

owners = st.builds(Owner, st.just("k"), st.just("ns"), st.sampled_from("abcdef"), st.sampled_from(["one", "two"]))
some_owners = st.just(frozenset(Owner("k", "ns", n, u) for n in "abcdef" for u in ("one", "two"))) | st.frozensets(
    owners
)
actors = st.sampled_from([0, 1])


@dataclass
class Sleeper:
    """A decision that is written later. `seen` is what its process had read."""

    actor: int
    after: Model
    ledger: Ledger
    version: Version
    seen: object


class Watched:
    """A store that can lose the next write, or the answer to it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fault: Fault | None = None

    async def read(self) -> tuple[Ledger, Version]:
        return await self.store.read()

    async def write(self, ledger: Ledger, version: Version) -> None:
        fault, self.fault = self.fault, None
        if fault in (Fault.LOST_REQUEST, Fault.KILLED_BEFORE):
            raise Killed if fault is Fault.KILLED_BEFORE else StoreError("no answer")
        await self.store.write(ledger, version)
        if fault is not None:
            raise Killed if fault is Fault.KILLED_AFTER else StoreError("no answer")

    async def changed(self, version: Version) -> None:
        await self.store.changed(version)


def name_of(owner: Owner) -> Name:
    return owner.name, owner.uid


def owner_of(name: Name) -> Owner:
    return Owner("k", "ns", *name)


class Machine(RuleBasedStateMachine):
    """See the module. `kinds` are the stores it may begin with; `steps` counts over all instances."""

    kinds: tuple[str, ...] = KINDS
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.now, self.monotonic = 10_000.0, 0.0
        self.policy = POLICIES[0]
        self.model = Model()
        self.sleeper: Sleeper | None = None
        self.missing: dict[Name, float] = {}
        self.checked, self.checked_with = Ledger(), self.policy

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        if self.folder is not None:
            self.folder.cleanup()

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.kind = data.draw(st.sampled_from(self.kinds))
        if self.kind == "file":
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # millions of syncs
            self.folder = tempfile.TemporaryDirectory(prefix="rhizome-ipam-", dir=memory)
            self.path = Path(self.folder.name, "ledger")
        self.memory, self.server = MemoryStore(), Server()
        self.stores = [self.fresh(), self.fresh()]
        self.collector = self.new_collector()

    def fresh(self) -> Watched:
        if self.kind == "file":
            return Watched(FileStore(self.path))
        return Watched(self.memory if self.kind == "memory" else KubernetesStore(Client(self.server), "l", SHARDS))

    def new_collector(self) -> GarbageCollector:
        self.missing = {}
        self.alive: list[Set[Owner]] = []

        async def living() -> Set[Owner]:
            return self.alive.pop(0)

        book = AddressBook(self.stores[0], self.policy)
        return GarbageCollector(book, living, lambda owner: owner.kind == "k", GRACE_S)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def read(self) -> Ledger:
        """As a process that begins now sees it."""
        return self.run(self.fresh().read())[0]

    def book(self, actor: int) -> AddressBook:
        return AddressBook(self.stores[actor], self.policy)

    def commit(self, after: Model, *changed: Name) -> None:
        for name in changed:
            if after.held.get(name) != self.model.held.get(name):
                self.missing.pop(name, None)
        self.model = after

    # What people and programs want.

    @rule(actor=actors, owner=owners, lifetime=st.none() | st.sampled_from([60.0, 3600.0]))
    def ensure(self, actor: int, owner: Owner, lifetime: float | None) -> None:
        type(self).steps += 1
        after, expires = self.model.copy(), None if lifetime is None else self.now + lifetime
        book = self.book(actor)
        try:
            expected = after.allocate(name_of(owner), self.policy.pools, self.now, expires)
        except Full:
            try:
                self.run(book.ensure(owner, self.now, expires))
            except PoolExhausted:
                return
            raise AssertionError("it gave what nobody has") from None
        allocation = self.run(book.ensure(owner, self.now, expires))
        assert tuple(map(str, allocation.blocks)) == expected.blocks
        self.commit(after, name_of(owner))

    @rule(actor=actors, owner=owners)
    def release(self, actor: int, owner: Owner) -> None:
        type(self).steps += 1
        after = self.model.copy()
        try:
            after.release(name_of(owner), self.now)
        except NotYours:
            try:
                self.run(self.book(actor).release(owner, self.now))
            except NotOwner:
                return
            raise AssertionError("it released what another UID holds") from None
        self.run(self.book(actor).release(owner, self.now))
        self.commit(after, name_of(owner))

    # Time, and what operators do.

    @rule(seconds=st.sampled_from([1.0, 59.0, 60.0, 359.0, 360.0, 5000.0]))
    def wait(self, seconds: float) -> None:
        type(self).steps += 1
        self.now += seconds
        self.monotonic += seconds

    @rule(seconds=st.sampled_from([-7200.0, -60.0, 60.0, 86400.0]))
    def step_the_clock(self, seconds: float) -> None:
        type(self).steps += 1
        self.now += seconds

    @rule(policy=st.sampled_from(POLICIES))
    def edit_the_pools(self, policy: Policy) -> None:
        type(self).steps += 1
        self.policy = policy
        self.collector = self.new_collector()

    # What goes wrong.

    @rule(actor=actors)
    def restart(self, actor: int) -> None:
        type(self).steps += 1
        self.stores[actor] = self.fresh()

    @precondition(lambda self: self.sleeper is None)
    @rule(actor=actors, owner=owners)
    def decide_and_fall_asleep(self, actor: int, owner: Owner) -> None:
        """A process reads, decides, and is scheduled away before it writes; or its view was stale from the beginning."""
        type(self).steps += 1
        after = self.model.copy()
        ledger, version = self.run(self.stores[actor].read())
        with suppress(Full):
            after.allocate(name_of(owner), self.policy.pools, self.now, None)
            decided, _ = allocate(ledger, self.policy, owner, self.now)
            if decided.generation > ledger.generation:
                self.sleeper = Sleeper(actor, after, decided, version, self.stored())

    @precondition(lambda self: self.sleeper is not None)
    @rule()
    def wake_up_and_write(self) -> None:
        type(self).steps += 1
        sleeper, self.sleeper = self.sleeper, None
        assert sleeper is not None
        same = self.stored() == sleeper.seen
        try:
            self.run(self.stores[sleeper.actor].write(sleeper.ledger, sleeper.version))
        except Conflict:
            assert not same or self.kind == "kubernetes", "it lost although nobody else wrote"
            self.adopt(sleeper.after)
        else:
            assert same or self.kind == "kubernetes", "it won although somebody else wrote"
            self.adopt(sleeper.after)

    def stored(self) -> object:
        """Equal as long as nobody has written."""
        return self.server.version if self.kind == "kubernetes" else self.read().generation

    @rule(
        actor=actors,
        owner=owners,
        fault=st.sampled_from(Fault),
        at=st.integers(0, 5),
        releasing=st.booleans(),
    )
    def fail(self, actor: int, owner: Owner, fault: Fault, at: int, releasing: bool) -> None:
        """One of the requests of a call is lost, or its answer, or the process. What counts is what is stored."""
        type(self).steps += 1
        after, store = self.model.copy(), self.stores[actor]
        if self.kind == "kubernetes":
            assert isinstance(store.store, KubernetesStore) and isinstance(store.store._maps, Client)
            store.store._maps.fault, store.store._maps.fault_at = fault, at
        else:
            store.fault = fault if fault is not Fault.TWICE else Fault.LOST_ANSWER
        work = self.book(actor).release if releasing else self.book(actor).ensure
        try:
            with suppress(Full, NotYours):
                if releasing:
                    after.release(name_of(owner), self.now)
                else:
                    after.allocate(name_of(owner), self.policy.pools, self.now, None)
            self.run(work(owner, self.now))
        except (PoolExhausted, NotOwner):
            after = self.model
        except StoreError:
            pass
        except Killed:
            self.stores[actor] = self.fresh()
        store.fault = None
        if self.kind == "kubernetes" and isinstance(store.store, KubernetesStore):
            store.store._maps.fault_at = -1  # type: ignore[attr-defined]
        self.adopt(after, None if releasing else name_of(owner))

    def adopt(self, after: Model, concerned: Name | None = None) -> None:
        """What is stored is, for each owner, what it was or what it was to become; and all or nothing in stores of one piece."""
        ledger = self.read()
        stored = {name_of(a.owner): held_of(a) for a in ledger if a.owner.kind != UNCONFIRMED}
        for name in {*stored, *self.model.held, *after.held}:
            if stored.get(name) not in (self.model.held.get(name), after.held.get(name)):
                # Decided again while the claims of those who went were still there: another block, but one of each pool.
                assert self.kind == "kubernetes" and name == concerned and name in stored, name
                assert all(any(from_pool(b, pool) for b in stored[name].blocks) for pool in self.policy.pools)
        if self.kind != "kubernetes":
            assert stored in (self.model.held, after.held)
        loose = {str(block) for a in ledger if a.owner.kind == UNCONFIRMED for block in a.blocks}
        self.commit(Model(held=stored, loose=loose), *stored, *self.model.held)

    @precondition(lambda self: self.model.loose)
    @rule(actor=actors)
    def reclaim(self, actor: int) -> None:
        """Some time later, claims of the dead are taken back."""
        type(self).steps += 1
        before = ipam.stores.kubernetes.CLAIM_GRACE_S
        ipam.stores.kubernetes.CLAIM_GRACE_S = 0.0
        try:
            self.run(self.stores[actor].read())
        finally:
            ipam.stores.kubernetes.CLAIM_GRACE_S = before
        self.model.loose = set()

    @precondition(lambda self: self.kind == "file" and self.path.exists())
    @rule(actor=actors, torn=st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")))
    def tear_the_file(self, actor: int, torn: bytes) -> None:
        type(self).steps += 1
        with self.path.open("ab") as out:
            out.write(torn)
        self.stores[actor] = self.fresh()

    @rule(dead=some_owners, late=some_owners, seconds=st.sampled_from([0.0, 450.0, 900.0]))
    def collect(self, dead: Set[Owner], late: Set[Owner], seconds: float) -> None:
        """A list of the living, right or wrong; `late` are those that the second list has after all."""
        type(self).steps += 1
        self.now, self.monotonic = self.now + seconds, self.monotonic + seconds
        everybody = {owner_of(name) for name in self.model.held}
        self.alive = [everybody - dead, everybody - (dead - late)]
        held = {name for name, h in self.model.held.items() if h.rests_until is None}
        gone = {name_of(owner) for owner in dead} & held
        self.missing = {name: self.missing.get(name, self.monotonic) for name in gone}
        ripe = {name for name in gone if self.monotonic - self.missing[name] >= GRACE_S} - set(map(name_of, late))
        done = self.run(self.collector.run_once(self.now, self.monotonic, force=True))
        after = self.model.copy()
        if ripe:
            after.pass_time(self.now)
            for name in ripe & after.held.keys():
                if after.held[name].rests_until is None:
                    after.held[name] = Held(after.held[name].blocks, None, self.now + after.quarantine_s)
        assert {name_of(a.owner) for a in done.released} <= ripe
        self.model = after

    # What always holds.

    @invariant()
    def every_process_sees_what_the_model_knows(self) -> None:
        if not hasattr(self, "stores"):
            return
        for store in self.stores:
            ledger, _ = self.run(store.read())
            if ledger is self.checked and self.policy is self.checked_with:
                continue
            stored = {name_of(a.owner): held_of(a) for a in ledger if a.owner.kind != UNCONFIRMED}
            assert stored == self.model.held
            assert {str(b) for a in ledger if a.owner.kind == UNCONFIRMED for b in a.blocks} == self.model.loose
        if ledger is self.checked and self.policy is self.checked_with:
            return
        self.checked, self.checked_with = ledger, self.policy
        blocks = [a for held in self.model.held.values() for b in held.blocks for a in addresses(b)]
        assert len(blocks) == len(set(blocks)), "an address has two owners"
        assert not contradictions(ledger)
        for pool in self.policy.pools:
            seen = usage(ledger, pool)
            assert seen.used + seen.quarantined + seen.orphaned + seen.free == pool.size
            assert seen.free == free_in(ledger, pool)


def held_of(allocation: Allocation) -> Held:
    return Held(tuple(map(str, allocation.blocks)), allocation.expires, allocation.rests_until)


def free_in(ledger: Ledger, pool: Pool) -> int:
    """How many blocks could be given, block by block."""
    used = {address for allocation in ledger for block in allocation.blocks for address in addresses(str(block))}
    return sum(not addresses(block) & used for block in candidates(pool))
