"""The ledger in ConfigMaps on a real kube-apiserver and etcd, as an account that may do what examples/ipam-rbac.yaml grants and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

import ipam.stores.kubeapi
import ipam.stores.kubernetes as module
from agent.errors import Conflict, RhizomeError, StoreError
from ipam.__main__ import main
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import UNCONFIRMED, Block, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.kubeapi import Forbidden
from ipam.stores.kubernetes import KubernetesStore, connect
from ipam.stores.shards import home, parse, places, unconfirmed
from lab.kube.ledger import ACCOUNT, NAMESPACE, POLICY, RIGHTS, SHARDS, LedgerLab, owner
from lab.kube.plane import ControlPlane, Here
from lab.processes import wait_until

pytestmark = pytest.mark.kube


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(Here(tmp_path_factory.mktemp("plane"))) as made:
        made.kubectl("apply", "-f", str(RIGHTS))
        yield made


@pytest.fixture
async def cluster(plane: ControlPlane, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[LedgerLab]:
    made = LedgerLab(plane, tmp_path, f"l{abs(hash(request.node.name)) % 10**8}")
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_a_life_with_the_least_of_rights(cluster: LedgerLab) -> None:
    book, other = await cluster.book(), await cluster.book()
    first = await book.ensure(owner("a"), 0.0, expires=100.0)
    assert [str(block) for block in first.blocks] == ["10.0.0.8", "fd00::8"]
    await other.ensure(owner("b"), 0.0)
    await other.release(owner("b"), 1.0)
    assert (await other.ensure(owner("b"), 2.0)).blocks != first.blocks
    third = await book.ensure(owner("c"), 5000.0)
    assert third.blocks == first.blocks
    assert set(await cluster.check()) == {"b", "c"}
    maps = await cluster.maps()
    with pytest.raises(Forbidden, match=r"cannot delete resource .*examples/ipam-rbac\.yaml"):
        await maps._call("DELETE", f"{maps._path}/{cluster.name}-0")


async def test_conflicts_between_processes(cluster: LedgerLab) -> None:
    books = [await cluster.book() for _ in range(8)]
    await books[0].ensure(owner("first"), 0.0)

    async def process(number: int) -> list[str]:
        got = [await books[number].ensure(owner(f"p{number}-{n}"), 0.0) for n in range(4)]
        await books[number].release(owner(f"p{number}-0"), 0.0)
        return [str(block) for allocation in got for block in allocation.blocks]

    blocks = [block for each in await asyncio.gather(*map(process, range(8))) for block in each]
    assert len(blocks) == len(set(blocks)) == 64
    assert len(await cluster.check()) == 33


async def test_the_second_of_two_writers_loses_and_leaves_nothing(cluster: LedgerLab) -> None:
    await (await cluster.book()).ensure(owner("first"), 0.0)
    a, b = await cluster.store(), await cluster.store()
    (mine, v1), (theirs, v2) = await a.read(), await b.read()
    await a.write(allocate(mine, POLICY, owner("x"), 0.0)[0], v1)
    with pytest.raises(Conflict):
        await b.write(allocate(theirs, POLICY, owner("x"), 5.0)[0], v2)
    await a.write(release((await a.read())[0], POLICY, owner("x"), 9.0), (await a.read())[1])
    assert set(await cluster.check()) == {"first", "x"}
    items, _ = await (await cluster.maps()).everything(whole=True)
    assert list(unconfirmed(parse(item.text or "") for item in items)) == []


async def test_answers_that_are_lost(cluster: LedgerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is done, the connection breaks before the answer: whoever asks again gets what was given."""
    monkeypatch.setattr(ipam.stores.kubeapi, "TIMEOUT_S", 3.0)
    book = await cluster.book()
    await book.ensure(owner("first"), 0.0)
    lost = 0
    for n in range(12):
        store = await cluster.store()
        ledger, version = await store.read()
        after, _ = allocate(ledger, POLICY, owner(f"n{n}"), 0.0)
        real, seen = store._maps._call, 0

        async def call(*words: Any, real: Any = real, at: int = n % 3, **more: Any) -> Any:
            nonlocal seen
            seen += 1
            cluster.way.swallow = seen > at
            return await real(*words, **more)

        monkeypatch.setattr(store._maps, "_call", call)
        try:
            await store.write(after, version)
        except StoreError:
            lost += 1
        cluster.way.swallow = False
        assert (await book.ensure(owner(f"n{n}"), 1.0)).blocks == (
            await (await cluster.book()).ensure(owner(f"n{n}"), 2.0)
        ).blocks
    assert lost >= 4  # with every third, the first of its answers
    held = await cluster.check()
    assert len(held) == 13
    monkeypatch.setattr(module, "CLAIM_GRACE_S", 0.0)
    store = await cluster.store()
    await store.read()
    ledger, _ = await store.read()
    assert not [a for a in ledger if a.owner.kind == UNCONFIRMED]


async def test_an_api_server_that_is_busy(cluster: LedgerLab) -> None:
    """Its own priority and fairness lets one request of ours in at a time and answers all others 429: everybody gets an address
    nevertheless, and nobody the same."""
    books = [await cluster.book() for _ in range(12)]
    await books[0].ensure(owner("first"), 0.0)
    level = {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "nothing"},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0,
                                                 "limitResponse": {"type": "Reject"}}},
    }  # fmt: skip
    account = {"kind": "ServiceAccount", "serviceAccount": {"name": ACCOUNT, "namespace": NAMESPACE}}
    rule = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True}
    flow = {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": {"name": "nothing"},
        "spec": {
            "priorityLevelConfiguration": {"name": "nothing"},
            "matchingPrecedence": 2,
            "rules": [{"subjects": [account], "resourceRules": [rule]}],
        },
    }
    cluster.plane.apply(level, flow)
    try:
        async with asyncio.timeout(120):
            for wave in itertools.count():
                await asyncio.gather(*(until_it_works(book, f"w{wave}-{n}") for n, book in enumerate(books)))
                if await asyncio.to_thread(refused, cluster.plane) >= 20:
                    break
    finally:
        cluster.plane.kubectl("delete", "flowschema/nothing", "prioritylevelconfiguration/nothing", "--wait=false")
    held = await cluster.check()
    blocks = [block for each in held.values() for block in each]
    assert len(held) == 1 + 12 * (wave + 1) and len(blocks) == len(set(blocks)) == 2 * len(held)


def refused(plane: ControlPlane) -> float:
    """How many requests of ours were answered 429."""
    page = plane.kubectl("get", "--raw", "/metrics")
    name = "apiserver_flowcontrol_rejected_requests_total{"
    lines = [line for line in page.splitlines() if line.startswith(name) and 'flow_schema="nothing"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def until_it_works(book: AddressBook, name: str) -> int:
    """How often it failed before."""
    for failed in range(1000):
        try:
            await book.ensure(owner(name), 0.0)
        except RhizomeError:
            await asyncio.sleep(0.1)
        else:
            return failed
    raise AssertionError("it never worked")


async def test_a_restart_of_the_api_server_in_the_middle(cluster: LedgerLab) -> None:
    """Killed while four processes allocate; they go on when it is back, and no address is given twice."""
    books = [await cluster.book() for _ in range(4)]
    await books[0].ensure(owner("first"), 0.0)
    failures = 0

    async def process(number: int) -> None:
        nonlocal failures
        for n in range(25):
            failures += await until_it_works(books[number], f"p{number}-{n}")

    working = asyncio.gather(*map(process, range(4)))
    await asyncio.sleep(0.7)
    await cluster.restart_api_server()
    await asyncio.wait_for(working, 90)
    assert failures > 0
    held = await cluster.check()
    blocks = [block for each in held.values() for block in each]
    assert len(held) == 101 and len(blocks) == len(set(blocks))


async def test_changes_are_watched(cluster: LedgerLab) -> None:
    store, book = await cluster.store(), await cluster.book()
    await book.ensure(owner("a"), 0.0)
    _, version = await store.read()
    waiting = asyncio.create_task(store.changed(version))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await book.ensure(owner("b"), 0.0)
    await asyncio.wait_for(waiting, 5.0)
    assert (await store.read())[1] != version


async def test_by_kubeconfig_and_by_command(
    cluster: LedgerLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    async with connect(NAMESPACE, cluster.name, SHARDS) as store:
        await AddressBook(store, POLICY).ensure(owner("a"), 0.0)
    flags = ["--store", f"kubernetes:{NAMESPACE}/{cluster.name}", "--network", "10.0.0.0/20", "-o", "json"]

    def say(*words: str) -> Any:
        code = main([*words, *flags])
        assert code == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    commands: Callable[..., Any] = asyncio.to_thread  # each has an event loop of its own
    (given,) = await commands(say, "allocate", "node/a/n/u")
    assert given["addresses"] == ["10.0.0.9"]
    assert (await commands(say, "explain", "10.0.0.9"))["standing"] == "used"
    listed = await commands(say, "list")
    assert {a["owner"]["name"] for a in listed["allocations"]} == {"a", "n"}


async def test_writers_of_different_shards_do_not_conflict(cluster: LedgerLab) -> None:
    """Both decide on the same state, and write one after the other; writers of one shard could not."""
    await (await cluster.book()).ensure(owner("first"), 0.0)
    a, b = await cluster.store(), await cluster.store()
    (mine, v1), (theirs, v2) = await a.read(), await b.read()
    after, given = allocate(mine, Policy((Pool(IPv4Network("10.1.1.0/24")),)), owner("x"), 0.0)
    touched = {home(owner("x"), SHARDS), *places(given.blocks[0], SHARDS)}
    name = next(f"y{n}" for n in range(100) if home(owner(f"y{n}"), SHARDS) not in touched)
    elsewhere = (IPv4Network(f"10.1.{n}.0/24") for n in range(2, 100))
    network = next(n for n in elsewhere if not touched & {*places(Block.of(IPv4Network(f"{n[0]}/32")), SHARDS)})
    other, _ = allocate(theirs, Policy((Pool(network),)), owner(name), 0.0)
    await a.write(after, v1)
    await b.write(other, v2)
    assert set(await cluster.check()) == {"first", "x", name}


async def test_sixty_thousand_in_objects_under_a_mebibyte(cluster: LedgerLab) -> None:
    """Written in one go, with as many shards as a new ledger gets, and read by another process."""
    policy = Policy((Pool.tunnel(IPv4Network("10.0.0.0/16")), POLICY.pools[1]))
    ledger = Ledger()
    for n in range(60_000):
        ledger, _ = allocate(
            ledger, policy, Owner("shoot-client", "shoot--garden--a", f"node-{n:05}", f"uid-{n:05}"), 0.0
        )
    writer, reader = [KubernetesStore(await cluster.maps(), cluster.name) for _ in range(2)]
    await writer.write(ledger, (await writer.read())[1])
    found, _ = await reader.read()
    assert {a.owner: a.blocks for a in found} == {a.owner: a.blocks for a in ledger}
    raw = cluster.plane.kubectl(
        "get", "configmaps", "-n", NAMESPACE, "-l", f"rhizome/ledger={cluster.name}", "-o", "json"
    )
    sizes = [len(json.dumps(item)) for item in json.loads(raw)["items"]]
    assert len(sizes) == module.SHARDS and max(sizes) < 1 << 20


VERBS = ("get", "list", "watch", "create", "update")


@pytest.fixture
def rights(plane: ControlPlane) -> Iterator[Callable[..., None]]:
    """Changes the verbs of the account's role; afterwards it has the documented ones again."""

    def grant(*verbs: str) -> None:
        rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": list(verbs)}]
        plane.kubectl("patch", "role", ACCOUNT, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"rules": rules}))

        def known() -> bool:
            asked = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
            can = {
                v: plane.kubectl("auth", "can-i", v, "configmaps", "-n", NAMESPACE, f"--as={asked}", check=False)
                for v in VERBS
            }
            return {verb for verb, answer in can.items() if answer.startswith("yes")} == set(verbs)

        wait_until(known, f"the role having the verbs {verbs}", 30, 0.2)

    yield grant
    grant(*VERBS)


@pytest.mark.parametrize("missing", VERBS)
async def test_every_documented_verb_is_needed(cluster: LedgerLab, rights: Callable[..., None], missing: str) -> None:
    """Without it the message names the verb and the file with the rights, and nothing is retried; with all of them it works."""
    book, other, store = await cluster.book(), await cluster.book(), await cluster.store()
    if missing != "create":  # which is needed for the first write of a ledger alone
        await book.ensure(owner("first"), 0.0)
    _, version = await store.read()
    await asyncio.to_thread(rights, *(verb for verb in VERBS if verb != missing))
    attempts: dict[str, Callable[[], Awaitable[object]]] = {
        "watch": lambda: store.changed(version),
        "get": lambda: use(other, book),
    }
    began = asyncio.get_running_loop().time()
    with pytest.raises(Forbidden, match=rf"cannot {missing} resource .*examples/ipam-rbac\.yaml"):
        await attempts.get(missing, lambda: book.ensure(owner("second"), 0.0))()
    assert asyncio.get_running_loop().time() - began < 10
    await asyncio.to_thread(rights, *VERBS)
    await book.ensure(owner("second"), 0.0)
    assert "second" in await cluster.check()


async def use(*books: AddressBook) -> None:
    """What one writes, the others have to fetch."""
    for n in range(4):
        for book in books:
            await book.ensure(owner(f"n{n}"), 0.0)
            await book.release(owner(f"n{n}"), 0.0)
