"""Faults at every request, restarts, shards that are gone or contradict each other, and what RBAC forbids: no grant is lost or given twice."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest

import ipam.stores.kubeapi
from agent.errors import Retry, RhizomeError, StoreError
from ipam.model import UNCONFIRMED, InconsistentLedger
from ipam.stores.kubeapi import Forbidden
from ipam.stores.kubernetes import UnusableShards, connect
from ipam.stores.shards import Shard
from ipam.usage import contradictions
from lab.apiserver import Fault
from tests.contract.kubernetes_store.conftest import COUNT, World, owner


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
