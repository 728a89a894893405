"""The seed server's addresses in ConfigMaps of a real kube-apiserver, with real daemons: also without it, and after it came back."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab import addresses
from lab.daemons import Daemon, node_name
from lab.helm import EXAMPLES, SEED, objects, only, text
from lab.ipam.replaced import come, given, go, used
from lab.kube.ledger import TOKEN, as_pod
from lab.kube.plane import ControlPlane
from lab.lab import Lab
from lab.processes import wait_until

pytestmark = pytest.mark.kube

NAMESPACE, LEDGER = "shoot--garden--a", "tunnels"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:vpn-{SEED}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Two shoot clients, one that comes later, and a seed server that keeps its ledger in the seed's API server, with the account, the rights
    and the setting that its chart gives its pod."""

    plane: ControlPlane
    server: Daemon
    clients: list[Daemon]
    new: Daemon
    environment: dict[str, str]
    token: Path

    def start_server(self) -> None:
        self.server.start(env=self.environment)

    def stored(self) -> dict[str, tuple[str, ...]]:
        """Name of each client -> its addresses, as the ConfigMaps say."""
        raw = self.plane.kubectl("get", "configmaps", "-n", NAMESPACE, "-l", f"rhizome/ledger={LEDGER}", "-o", "json")
        shards = [json.loads(item["data"]["shard.json"]) for item in json.loads(raw)["items"]]
        entries = [entry for shard in shards for entry in shard["entries"]]
        return {entry["owner"]["name"]: tuple(entry["addresses"]) for entry in entries}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with (
        Lab("none", nodes=3, seed_pods=1) as lab,
        ControlPlane(lab.seed_pods[0], address=addresses.seed_pod(1).v4) as plane,
    ):
        plane.kubectl("create", "namespace", NAMESPACE)
        values = {"ledger": {"enabled": True, "name": LEDGER}, "networkPolicy": {"enabled": False}}
        found = objects(text(SEED, EXAMPLES[SEED], values=values))
        parts = [only(found, kind) for kind in ("ServiceAccount", "Role", "RoleBinding")]
        plane.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(parts))
        config = tomllib.loads(only(found, "ConfigMap")["data"]["config.toml"])
        server = lab.seed_server(ipam_configmaps=config["ipam_configmaps"])
        *clients, new = (lab.shoot_client(index) for index in (1, 2, 3))
        environment = as_pod(plane, server.machine.directory / "run", NAMESPACE, f"vpn-{SEED}")
        token = server.machine.directory / "run" / TOKEN
        yield Scene(plane, server, clients, new, environment, token)


def test_a_new_seed_server_gives_every_client_the_address_it_had(scene: Scene) -> None:
    scene.start_server()
    come(scene.clients)
    before = given(scene.server)
    assert len(before) == len(set(before.values())) == 2
    assert scene.stored() == before
    go([*scene.clients, scene.server])
    scene.start_server()
    come(reversed(scene.clients))
    assert given(scene.server) == before
    assert used(scene.server) == dict.fromkeys(addresses.TUNNEL, 2.0)


def test_without_the_api_server_tunnels_stand_and_new_clients_wait(scene: Scene) -> None:
    """Who has an address enrols again as if nothing were; who has none is in as soon as the API server is back."""
    before = given(scene.server)
    known, new = scene.clients[0], scene.new
    scene.plane.api_server.kill()
    go([known])
    come([known])
    assert given(scene.server) == before
    new.start()
    wait_until(lambda: f"{node_name(3)} refused: store" in scene.server.log(), "the new client being refused", 30)
    assert scene.server.ready() and not new.ready()
    scene.plane.start_api_server()
    new.wait_ready(60)
    after = given(scene.server)
    assert before.items() < after.items() and len(set(after.values())) == 3
    assert scene.stored() == after


def test_a_server_that_starts_before_the_api_server_waits_for_it(scene: Scene) -> None:
    before = given(scene.server)
    go([*scene.clients, scene.new, scene.server])
    scene.plane.api_server.kill()
    scene.start_server()
    wait_until(lambda: "no new client gets an address yet" in scene.server.log(), "the server saying so", 40)
    for client in scene.clients:
        client.start()
    wait_until(lambda: f"{node_name(1)} refused: store" in scene.server.log(), "a client hearing it", 30)
    assert not scene.server.ready()
    scene.plane.start_api_server()
    for client in scene.clients:
        client.wait_ready(60)
    assert given(scene.server).items() <= before.items()


@contextmanager
def without(scene: Scene, verb: str) -> Iterator[str]:
    """The account's Role without a verb. What the server has to say about it."""
    role = ("role", LEDGER, "--namespace", NAMESPACE)
    rules = json.loads(scene.plane.kubectl("get", *role, "--output=json"))["rules"]

    def grant(allowed: Callable[[str], bool]) -> None:
        changed = [rule | {"verbs": [v for v in rule["verbs"] if allowed(v)]} for rule in rules]
        scene.plane.kubectl("patch", *role, "--type=merge", "--patch", json.dumps({"rules": changed}))
        what = "configmaps" if verb == "list" else f"configmaps/{LEDGER}-0"
        ask = ("auth", "can-i", verb, what, "--namespace", NAMESPACE, f"--as={ACCOUNT}")
        answer = "yes" if allowed(verb) else "no"
        wait_until(lambda: answer in scene.plane.kubectl(*ask, check=False).split(), f"{verb}: {answer}", 30)

    grant(lambda v: v != verb)
    try:
        yield f"`{verb}` of ConfigMaps in namespace {NAMESPACE}: add it to this account's Role ({LEDGER}, where"
    finally:
        grant(lambda _: True)


def test_a_right_that_is_missing_is_told_to_the_seed_alone(scene: Scene) -> None:
    """Verb, Role and remedy are in the server's log; the shoot, which may be hostile, learns none of the seed's names."""
    go([scene.new])
    with without(scene, "update") as words:
        scene.new.start()
        wait_until(lambda: words in scene.server.log(), "the server saying what is missing", 30)
        heard = str(scene.new.status())
        assert "cannot keep an address for you" in heard
        assert "configmaps" not in heard + scene.new.log() and ACCOUNT not in heard + scene.new.log()
    scene.new.wait_ready(60)


def test_a_renewed_token_is_read(scene: Scene) -> None:
    """The kubelet puts a new one in place of each that ends. Here the old one is good for nothing, as its account was made anew."""
    account = ("serviceaccount", f"vpn-{SEED}", "--namespace", NAMESPACE)
    old = scene.token.read_text()
    scene.plane.kubectl("delete", *account)
    scene.plane.kubectl("create", *account)
    scene.token.write_text(scene.plane.kubectl("create", "token", *account[1:]).strip())

    plane = scene.plane
    as_before = (
        "--kubeconfig=/dev/null",
        f"--server={plane.url}",
        f"--certificate-authority={plane.ca.certificate}",
        f"--token={old}",
    )

    def refused() -> bool:
        return "Unauthorized" in plane.kubectl("get", "configmaps", *account[2:], *as_before, check=False)

    wait_until(refused, "the old token being refused", 30, every_s=0.5)
    go([scene.clients[0]])
    come([scene.clients[0]])


def test_a_server_that_may_not_read_its_ledger_ends_and_says_so(scene: Scene) -> None:
    go([scene.server])
    with without(scene, "list") as words:
        scene.start_server()
        assert scene.server.process.wait() == 1
        assert words in scene.server.log()
