"""The rights of docs/install.md are what is needed and no more: with each verb taken away in turn, the real kube-apiserver lets the feature
fail that the documentation names, with its words, and no other. What asks is the daemons' own code, with real service account tokens."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.messages import Offer
from agent.model import networks
from agent.run import spawn
from ipam.allocate import allocate
from ipam.model import Owner, Policy, Pool
from ipam.stores.kubeapi import Forbidden
from ipam.stores.kubernetes import KubernetesStore, connect
from lab.helm import EXAMPLES, ROOT, SHOOT, objects, only, text
from lab.kube import ControlPlane, Here
from lab.processes import wait_until
from shoot_client.nodeapi import NodeApi, NodeApiError, NodeFollower
from shoot_client.nodeobject import NodeFacts

pytestmark = pytest.mark.kube

NODE_VERBS = ("get", "watch")
LEDGER_VERBS = ("get", "list", "watch", "create", "update")
#: What a ledger cannot do without a verb, as docs/install.md has it.
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


def restrict(plane: ControlPlane, role: dict[str, Any], without: str, account: str, *resource: str) -> None:
    """Put a role in place, without a verb, and wait until the API server goes by it."""
    changed = json.loads(json.dumps(role))
    (rule,) = changed["rules"]
    rule["verbs"] = [verb for verb in rule["verbs"] if verb != without]
    plane.kubectl("apply", "--filename", "-", stdin=json.dumps(changed))

    def may(verb: str) -> bool:
        words = ("auth", "can-i", verb, *resource, f"--as=system:serviceaccount:{account}")
        return "yes" in plane.kubectl(*words, check=False).splitlines()

    verbs = role["rules"][0]["verbs"]
    wait_until(
        lambda: all(may(v) is (v != without) for v in verbs),
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
    restrict(plane, only(rendered, "ClusterRole"), without, who, "node/node-1")
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
    restrict(plane, only(rendered, "ClusterRole"), "", f"shoot--garden--a:{account}", "node/node-1")
    path = kubeconfig(plane, tmp_path, account, "shoot--garden--a")
    assert NodeApi("node-1", path).get()["metadata"]["name"] == "node-1"
    with pytest.raises(NodeApiError, match="refuses Node 'node-2': this is not allowed"):
        NodeApi("node-2", path).get()
    with pytest.raises(NodeApiError, match="this is not allowed"):
        next(NodeApi("node-2", path).watch("0"))


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
    path = kubeconfig(plane, tmp_path, IPAM, IPAM)
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    resource = ("configmaps", "--namespace", IPAM)
    restrict(plane, role, "", f"{IPAM}:{IPAM}", *resource)
    known = f"known-{without or 'all'}"
    assert await features(known, known) == {}
    restrict(plane, role, without, f"{IPAM}:{IPAM}", *resource)
    failed = await features(f"new-{without or 'all'}", known)
    serial = itertools.count()

    def touch() -> None:
        names = plane.kubectl(
            "get", "configmaps", "--namespace", IPAM, "--selector", f"rhizome/ledger={known}", "--output=name"
        )
        plane.kubectl("annotate", "--namespace", IPAM, "--overwrite", *names.split(), f"touched={next(serial)}")

    if words := await follow(known, touch):
        failed["follow"] = words
    assert failed.keys() == LOST[without]
    for words in failed.values():
        assert f"cannot {without} resource" in words and "see examples/ipam-rbac.yaml for what is needed" in words
