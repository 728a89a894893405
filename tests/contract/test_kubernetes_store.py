"""The ledger in ConfigMaps, against a stand-in for the API server that is as strict (lab.apiserver); tests/kube has the real one."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import httpx2
import pytest

import ipam.stores.kubeapi
import ipam.stores.kubernetes as module
from agent.errors import Conflict, Retry, RhizomeError, StoreError
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import UNCONFIRMED, InconsistentLedger, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.kubeapi import ConfigMaps, Forbidden
from ipam.stores.kubernetes import KubernetesStore, UnusableShards, connect
from ipam.stores.shards import Shard, home, parse, places, unconfirmed
from ipam.usage import contradictions
from lab.apiserver import ApiServer, Fault

POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/20")), Pool.tunnel(IPv6Network("fd00::/96"))))
COUNT = 4


def owner(name: str) -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, "uid")


class World:
    """One API server, and as many processes as wanted, each with a client of its own."""

    def __init__(self) -> None:
        self.server = ApiServer()
        self.url = ""
        self.clients: list[httpx2.AsyncClient] = []

    def store(self, count: int = COUNT) -> KubernetesStore:
        return KubernetesStore(self.maps(), "ledger", count)

    def maps(self) -> ConfigMaps:
        self.clients.append(httpx2.AsyncClient(base_url=self.url))
        return ConfigMaps(self.clients[-1], "garden", "ledger")

    def book(self, attempts: int = 100) -> AddressBook:
        return AddressBook(self.store(), POLICY, attempts=attempts)

    async def shards(self) -> dict[int, Shard]:
        items, _ = await self.maps().everything(whole=True)
        return {shard.index: shard for shard in (parse(item.text or "") for item in items)}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.url = await world.server.start()
    try:
        yield world
    finally:
        for each in world.clients:
            await each.aclose()
        await world.server.stop()
        await asyncio.sleep(0)


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


def places_of(ledger: Ledger, who: Owner) -> int:
    return places(allocate(ledger, POLICY, who, 0.0)[1].blocks[0], COUNT)[0]


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.INTERNAL])
async def test_faults_at_every_request_of_a_write(world: World, fault: Fault) -> None:
    """Whatever goes wrong once: the call works or fails with an error that says to try again, and trying again gives one address."""
    await world.book().ensure(owner("first"), 0.0)
    for at in range(12):
        book, seen = world.book(), 0
        ledger, _ = await world.store().read()

        def once(method: str, path: str, at: int = at) -> Fault:
            nonlocal seen
            seen += 1
            return fault if seen == at + 1 else Fault.NONE

        world.server.faults = once
        failed = False
        try:
            got = await book.ensure(owner(f"n{at}"), 0.0)
        except StoreError as exc:
            failed = exc.retry is not Retry.NEVER
        world.server.faults = lambda _m, _p: Fault.NONE
        again = await book.ensure(owner(f"n{at}"), 1.0)
        assert failed or again == got
        assert again == await world.book().ensure(owner(f"n{at}"), 2.0)
        if seen <= at:
            break
    else:
        raise AssertionError("a write takes more requests than that?")
    assert fault is not Fault.BUSY or not failed
    ledger, _ = await world.store().read()
    assert not contradictions(ledger)


async def test_an_api_server_that_is_always_busy_is_an_error_that_says_so(world: World) -> None:
    world.server.faults = lambda _m, _p: Fault.BUSY
    with pytest.raises(StoreError, match="too many requests") as caught:
        await world.store().read()
    assert caught.value.retry is Retry.BACKOFF
    assert world.server.requests["GET"] == ipam.stores.kubeapi.BUSY_TRIES


async def test_a_restart_in_the_middle(world: World) -> None:
    book = world.book()
    await book.ensure(owner("a"), 0.0)
    port = int(world.url.rpartition(":")[2])
    await world.server.stop()
    with pytest.raises(StoreError, match="no usable answer"):
        await book.ensure(owner("b"), 0.0)
    await world.server.start(port)
    assert (await book.ensure(owner("a"), 1.0)).since == 0.0
    await book.ensure(owner("b"), 1.0)


async def test_many_processes_and_random_faults(world: World) -> None:
    """Eight processes, a fault now and then: no address twice, what was told is what is stored, nothing leaks."""
    rng, told = random.Random(4), Counter[str]()
    kinds = [Fault.BUSY, Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.INTERNAL]
    world.server.faults = lambda _m, _p: rng.choice(kinds) if rng.random() < 0.03 else Fault.NONE
    granted: dict[str, list[str]] = {}

    async def process(number: int) -> None:
        book = world.book(attempts=200)
        for n in range(12):
            who = owner(f"p{number}-{n}")
            while True:
                try:
                    allocation = await book.ensure(who, 0.0)
                    break
                except RhizomeError as exc:
                    told[type(exc).__name__] += 1
            granted[who.name] = list(map(str, allocation.blocks))

    await asyncio.gather(*map(process, range(8)))
    world.server.faults = lambda _m, _p: Fault.NONE
    everything = [block for blocks in granted.values() for block in blocks]
    assert len(everything) == len(set(everything)) == 8 * 12 * 2
    ledger, _ = await world.store().read()
    stored = {a.owner.name: list(map(str, a.blocks)) for a in ledger if a.owner.kind != UNCONFIRMED}
    assert stored == granted
    assert not contradictions(ledger)


async def test_what_does_not_hold_together_grants_nothing(world: World) -> None:
    book = world.book()
    for n in range(6):
        await book.ensure(owner(f"n{n}"), 0.0)
    maps = world.maps()
    items, _ = await maps.everything(whole=True)
    victim = next(item for item in items if json.loads(item.text or "")["claims"])
    damaged = json.loads(victim.text or "") | {"claims": {}}
    changed = await maps.replace(victim, json.dumps(damaged))
    with pytest.raises(InconsistentLedger, match="is not claimed in shard"):
        await world.book().ensure(owner("new"), 0.0)
    for text, words in (("{", "it is damaged"), ('{"format": "x"}', "no piece of an address ledger")):
        changed = await maps.replace(changed, text)
        with pytest.raises(UnusableShards, match=words):
            await world.book().ensure(owner("new"), 0.0)
        with pytest.raises(UnusableShards, match=words):
            await book.ensure(owner("new"), 0.0)


@pytest.mark.parametrize("index", [0, 2])
async def test_a_shard_that_is_gone_is_not_an_empty_shard(world: World, index: int) -> None:
    book = world.book()
    for n in range(6):
        await book.ensure(owner(f"n{n}"), 0.0)
    maps = world.maps()
    await maps._call("DELETE", f"{maps._path}/ledger-{index}")
    for other in (book, world.book()):
        with pytest.raises(UnusableShards, match=f"ledger-{index} is gone; nothing is granted"):
            await other.ensure(owner("new"), 0.0)


async def test_a_first_write_that_was_interrupted_is_done_again(world: World) -> None:
    maps = world.maps()
    for index in (3, 1):
        await maps.create(f"ledger-{index}", Shard(index, COUNT).text())
    assert (await world.book().ensure(owner("a"), 0.0)).since == 0.0


async def test_two_first_writers(world: World) -> None:
    books = [world.book() for _ in range(4)]
    allocations = await asyncio.gather(*(book.ensure(owner(f"n{n}"), 0.0) for n, book in enumerate(books)))
    assert len({a.blocks for a in allocations}) == 4


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


async def test_without_any_way_to_an_api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(StoreError, match="neither a usable kubeconfig nor a service account"):
        async with connect("garden", "ledger"):
            pass


async def test_when_a_read_fails_nothing_of_it_is_at_work_any_more(world: World) -> None:
    """Its connections may be closed at once."""
    store, book = world.store(), world.book()
    await book.ensure(owner("a"), 0.0)
    await store.read()
    for n in range(8):
        await book.ensure(owner(f"b{n}"), 0.0)
    world.server.faults = lambda _method, path: Fault.INTERNAL if path[-1].isdigit() else Fault.NONE
    with pytest.raises(StoreError):
        await store.read()
    assert not [task for task in asyncio.all_tasks() if "ipam/stores" in repr(task)]


FORBIDDEN = 'configmaps "x" is forbidden: User "system:serviceaccount:a:b" cannot {} resource "configmaps"'


@pytest.mark.parametrize(
    ("method", "item", "verb"),
    [
        ("GET", "", "list"),
        ("GET", "/x-1", "get"),
        ("WATCH", "", "watch"),
        ("POST", "", "create"),
        ("PUT", "/x-1", "update"),
    ],
)
async def test_what_rbac_forbids_is_told_with_verb_role_and_remedy(
    world: World, method: str, item: str, verb: str
) -> None:
    maps = world.maps()
    said = json.dumps({"message": FORBIDDEN.format(verb)}).encode()
    words = rf"`{verb}` of ConfigMaps in namespace garden: add it to this account's Role \(ledger, .*examples/ipam-rbac\.yaml"
    with pytest.raises(Forbidden, match=words):
        maps._check(403, said, method, maps._path + item)


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (401, "Unauthorized", "token or certificate is not accepted"),
        (403, "exceeded quota: small, requested: count/configmaps=1", "not RBAC's no, but that of a quota"),
    ],
)
async def test_another_no_is_not_blamed_on_rbac(world: World, status: int, said: str, words: str) -> None:
    with pytest.raises(Forbidden, match=f"{said}.*{words}"):
        world.maps()._check(status, json.dumps({"message": said}).encode(), "POST", "/x")
