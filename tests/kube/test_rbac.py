"""The rights of docs/install.md are what is needed and no more: with each verb taken away in turn, the real kube-apiserver lets the feature
fail that the documentation names, with its words, and no other. What asks is the daemons' own code, with real service account tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.identity import Identity, Role
from agent.kinds import Namespaced
from agent.messages import Offer
from agent.model import networks
from agent.run import spawn
from ipam.allocate import allocate
from ipam.model import Owner, Policy, Pool
from ipam.stores.kubeapi import Forbidden
from ipam.stores.kubernetes import KubernetesStore, connect
from lab.helm import EXAMPLES, ROOT, SEED, SHOOT, objects, only, text
from lab.kube import ControlPlane, Here
from lab.processes import wait_until
from seed_server.addresses import addresses
from seed_server.settings import Settings
from shoot_client.nodeapi import NodeApi, NodeApiError, NodeFollower
from shoot_client.nodeobject import NodeFacts

pytestmark = pytest.mark.kube

NODE_VERBS = ("get", "watch")
LEDGER_VERBS = ("get", "list", "watch", "create", "update")
#: What a ledger cannot do without a verb, as examples/ipam-rbac.yaml has it.
LOST = {
    "": set(),
    "list": {"begin", "read", "follow", "write", "watch"},
    "get": {"follow"},
    "create": {"begin"},
    "update": {"begin", "write"},
    "watch": {"watch"},
}
POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/24")),))
IPAM = "rhizome-ipam"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(Here(tmp_path_factory.mktemp("rbac"))) as made:
        made.kubectl("apply", "-f", str(ROOT / "examples" / "ipam-rbac.yaml"))
        made.kubectl("create", "namespace", "shoot--garden--a")
        for name, address in (("node-1", "10.250.0.1"), ("node-2", "10.250.0.2")):
            made.apply(
                {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": "100.96.1.0/24"}}
            )
            status = {"status": {"addresses": [{"type": "InternalIP", "address": address}]}}
            made.kubectl("patch", "node", name, "--subresource=status", "--patch", json.dumps(status))
        yield made


def kubeconfig(plane: ControlPlane, directory: Path, account: str, namespace: str) -> Path:
    """Of a service account, with a token from the TokenRequest API."""
    known = json.loads(plane.kubeconfig.read_text())
    token = plane.kubectl("create", "token", account, "--namespace", namespace).strip()
    known["users"][0]["user"] = {"token": token}
    path = directory / "kubeconfig"
    path.write_text(json.dumps(known))
    return path


def log_in(plane: ControlPlane, directory: Path, account: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks from this process, asks as this service account."""
    path = kubeconfig(plane, directory, account, namespace)
    monkeypatch.setenv("KUBECONFIG", str(path))


def restrict(plane: ControlPlane, role: dict[str, Any], without: str, account: str) -> None:
    """Put a role in place, without a verb, and wait until the API server goes by it."""
    changed = json.loads(json.dumps(role))
    for rule in changed["rules"]:
        rule["verbs"] = [verb for verb in rule["verbs"] if verb != without]
    plane.kubectl("apply", "--filename", "-", stdin=json.dumps(changed))
    namespace = role["metadata"].get("namespace", "default")

    def may(verb: str, rule: dict[str, Any]) -> bool:
        what = "/".join((*rule["resources"], *rule.get("resourceNames", ())[:1]))
        words = ("auth", "can-i", verb, what, f"--as=system:serviceaccount:{account}", f"--namespace={namespace}")
        return "yes" in plane.kubectl(*words, check=False).splitlines()

    wait_until(
        lambda: all(may(verb, rule) is (verb != without) for rule in role["rules"] for verb in rule["verbs"]),
        f"{account} without {without!r}",
        timeout_s=30,
        every_s=0.1,
    )


# The Node object


@pytest.fixture(scope="module")
def rendered(plane: ControlPlane) -> list[dict[str, Any]]:
    """The chart's account and role for one node, in place."""
    values = {"settings": {"node_object": True}, "nodeObject": {"names": ["node-1"]}}
    found = objects(text(SHOOT, EXAMPLES[SHOOT], values=values))
    parts = [only(found, kind) for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")]
    plane.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(parts))
    return found


@pytest.mark.parametrize("without", ["", *NODE_VERBS])
async def test_the_node_object(
    without: str,
    plane: ControlPlane,
    rendered: list[dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without `get` nothing is known; without `watch` a change is found with the next `get`, ever more seldom."""
    account = only(rendered, "ServiceAccount")["metadata"]["name"]
    who = f"shoot--garden--a:{account}"
    restrict(plane, only(rendered, "ClusterRole"), without, who)
    plane.kubectl("annotate", "node", "node-1", "--overwrite", f"try={without or 'all'}")
    caplog.set_level(logging.INFO, "rhizome.shoot.node")
    found: list[NodeFacts] = []
    api = NodeApi("node-1", kubeconfig(plane, tmp_path, account, "shoot--garden--a"))
    task = spawn(NodeFollower(api, found.append).run(), name="test.follow")
    wanted = {"": "", "get": "refuses", "watch": "refuses"}[without]
    async with asyncio.timeout(30):
        while len(found) < (without != "get") or (wanted and wanted not in caplog.text):
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    facts = [NodeFacts(Offer(networks(["10.250.0.1/32"]), networks(["100.96.1.0/24"])))]
    assert found == ([] if without == "get" else facts)
    refusal = "refuses Node 'node-1': this is not allowed: grant `get` and `watch` on this Node to our service account"
    assert (refusal in caplog.text) is bool(without)
    known = {"": "", "get": "nothing is known of this node yet", "watch": "what is known of this node stays"}[without]
    assert known in caplog.text


async def test_a_named_node_and_no_other(plane: ControlPlane, rendered: list[dict[str, Any]], tmp_path: Path) -> None:
    account = only(rendered, "ServiceAccount")["metadata"]["name"]
    restrict(plane, only(rendered, "ClusterRole"), "", f"shoot--garden--a:{account}")
    path = kubeconfig(plane, tmp_path, account, "shoot--garden--a")
    with closing(NodeApi("node-1", path)) as own, closing(NodeApi("node-2", path)) as other:
        assert own.get()["metadata"]["name"] == "node-1"
        with pytest.raises(NodeApiError, match="refuses Node 'node-2': this is not allowed"):
            other.get()
        with pytest.raises(NodeApiError, match="this is not allowed"):
            next(other.watch("0"))


# The ledger


async def features(name: str, known: str) -> dict[str, str]:
    """What fails of a ledger's life, with which words: begin a new ledger, read one, follow what others write, write, watch."""
    failed: dict[str, str] = {}

    async def attempt(feature: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Forbidden as exc:
            failed[feature] = str(exc)

    async def add(store: KubernetesStore, who: str) -> None:
        ledger, version = await store.read()
        await store.write(allocate(ledger, POLICY, Owner("node", "a", who, "uid"), 0.0)[0], version)

    async def watch(store: KubernetesStore) -> None:
        _, version = await store.read()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.changed(version), 0.5)

    async with connect(IPAM, name, 2) as fresh, connect(IPAM, known, 2) as reader, connect(IPAM, known, 2) as watcher:
        await attempt("begin", lambda: add(fresh, "first"))
        await attempt("read", reader.read)
        await attempt("watch", lambda: watch(watcher))
        await attempt("write", lambda: add(reader, name))
    return failed


def touch(plane: ControlPlane, namespace: str, known: str) -> None:
    """Change all ConfigMaps of a ledger, as another writer would."""
    names = plane.kubectl("get", "configmaps", f"-n={namespace}", f"-l=rhizome/ledger={known}", "--output=name")
    plane.kubectl("annotate", f"-n={namespace}", "--overwrite", *names.split(), f"touched={time.monotonic_ns()}")


async def follow(known: str, change: Callable[[], None]) -> str:
    """What a reader that has the ledger says after another has changed it."""
    async with connect(IPAM, known, 2) as store:
        try:
            await store.read()
            await asyncio.to_thread(change)
            await store.read()
        except Forbidden as exc:
            return str(exc)
    return ""


@pytest.mark.parametrize("without", ["", *LEDGER_VERBS])
async def test_the_ledger(without: str, plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (role,) = [d for d in yaml.safe_load_all((ROOT / "examples/ipam-rbac.yaml").read_text()) if d["kind"] == "Role"]
    assert set(role["rules"][0]["verbs"]) == set(LEDGER_VERBS) == LOST.keys() - {""}
    log_in(plane, tmp_path, IPAM, IPAM, monkeypatch)
    restrict(plane, role, "", f"{IPAM}:{IPAM}")
    known = f"known-{without or 'all'}"
    assert await features(known, known) == {}
    restrict(plane, role, without, f"{IPAM}:{IPAM}")
    failed = await features(f"new-{without or 'all'}", known)
    if words := await follow(known, lambda: touch(plane, IPAM, known)):
        failed["follow"] = words
    assert failed.keys() == LOST[without]
    for words in failed.values():
        assert f"cannot {without} resource" in words and "as examples/ipam-rbac.yaml has it" in words


# The ledger of a seed server, with what its chart grants

CP = "shoot--garden--a"
#: What a seed server cannot do without a verb, as docs/install.md has it. A client that returns has its address for longer: that is written.
SEED_LOST = {
    "": set(),
    "list": {"begin", "start", "return", "join", "follow"},
    "create": {"begin"},
    "get": {"follow"},
    "update": {"begin", "return", "join", "follow"},
}


def granted(plane: ControlPlane, *ledgers: str) -> tuple[str, list[dict[str, Any]]]:
    """The chart's account and its role for each ledger, in place. The account's name and the roles."""
    roles = []
    for name in ledgers:
        values = {"ledger": {"enabled": True, "name": name}, "networkPolicy": {"enabled": False}}
        found = objects(text(SEED, EXAMPLES[SEED], values=values))
        parts = [only(found, kind) for kind in ("ServiceAccount", "Role", "RoleBinding")]
        plane.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(parts))
        roles.append(parts[1])
    return parts[0]["metadata"]["name"], roles


def seed_settings(ledger: str) -> Settings:
    file = Path("unused")
    networks = (IPv4Network("10.250.0.0/16"),)
    where = Namespaced(CP, ledger)
    return Settings(
        control_plane=CP, tls_ca=file, tls_certificate=file, tls_key=file, node_networks=networks, ipam_configmaps=where
    )


async def life(known: str, fresh: str, change: Callable[[], None]) -> dict[str, str]:
    """What fails of a seed server's life, with which words: begin a ledger, start with one, let a known client return, let a new one join, and
    let one join after another has written."""
    failed: dict[str, str] = {}

    async def attempt(feature: str, ledger: str, client: str, before: Callable[[], None] | None = None) -> None:
        try:
            async with addresses(seed_settings(ledger)) as made:
                if before is not None:
                    await asyncio.to_thread(before)
                if client:
                    await made.allocate(Identity(CP, Role.SHOOT_CLIENT, client))
        except Forbidden as exc:
            failed[feature] = str(exc)

    await attempt("start", known, "")
    await attempt("return", known, "node-1")
    await attempt("follow", known, "node-1", change)
    await attempt("join", known, fresh)
    await attempt("begin", fresh, "node-1")
    return failed


@pytest.mark.parametrize("without", list(SEED_LOST))
async def test_the_seed_servers_ledger(
    without: str, plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, fresh = f"seed-{without or 'all'}", f"new-{without or 'all'}"
    account, roles = granted(plane, known, fresh)
    assert {verb for rule in roles[0]["rules"] for verb in rule["verbs"]} == SEED_LOST.keys() - {""}
    log_in(plane, tmp_path, account, CP, monkeypatch)
    for role in roles:
        restrict(plane, role, "", f"{CP}:{account}")
    async with addresses(seed_settings(known)) as made:
        await made.allocate(Identity(CP, Role.SHOOT_CLIENT, "node-1"))
    plane.kubectl("delete", "role", "--namespace", CP, known, fresh)  # `list` and `create` by the one are for both
    for role in roles:
        restrict(plane, role, without, f"{CP}:{account}")
    failed = await life(known, fresh, lambda: touch(plane, CP, known))
    plane.kubectl("delete", "role", "--namespace", CP, known, fresh)
    assert failed.keys() == SEED_LOST[without]
    for feature, words in failed.items():
        assert f"cannot {without} resource" in words
        assert f"`{without}` of ConfigMaps in namespace {CP}: add it to this account's Role" in words
        assert f"({fresh if feature == 'begin' else known}, where the seed server's chart made it)" in words


async def test_a_seed_server_changes_no_ledger_but_its_own(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RBAC has no `list` by names, so it can read ConfigMaps that are not its own; and nothing else."""
    account, (mine, other) = granted(plane, "mine", "other")
    log_in(plane, tmp_path, account, CP, monkeypatch)
    restrict(plane, mine, "", f"{CP}:{account}")
    restrict(plane, other, "", f"{CP}:{account}")
    async with addresses(seed_settings("other")) as made:
        await made.allocate(Identity(CP, Role.SHOOT_CLIENT, "node-1"))
    plane.kubectl("delete", "role", "--namespace", CP, "other")
    who = f"--as=system:serviceaccount:{CP}:{account}"

    def may(verb: str, what: str) -> bool:
        return "yes" in plane.kubectl("auth", "can-i", verb, what, who, "--namespace", CP, check=False).splitlines()

    wait_until(lambda: not may("update", "configmaps/other-0"), "the role being gone", timeout_s=30, every_s=0.1)
    async with addresses(seed_settings("other")) as made:
        assert made.pools()[0].used == 1
        with pytest.raises(Forbidden, match="cannot update resource"):
            await made.allocate(Identity(CP, Role.SHOOT_CLIENT, "node-2"))
    assert may("get", "configmaps/mine-0")
    assert not may("get", "configmaps/other-0")
    assert not may("delete", "configmaps/mine-0")
    assert not may("list", "secrets")
