"""Real ServiceAccount tokens of a real kube-apiserver, which is asked for its keys, open the tunnel through Envoy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import addresses
from lab.daemons import Daemon, program
from lab.kube import ControlPlane
from lab.lab import Lab
from lab.processes import LabError, wait_until

pytestmark = pytest.mark.kube

ACCOUNT, NAMESPACE, NODE, POD = "rhizome-shoot-client", "kube-system", "node-1", "rhizome-shoot-client-x7k2p"
SUBJECT = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
AUDIENCE = f"spiffe://{addresses.CONTROL_PLANE}/seed-server"


@dataclass
class Scene:
    lab: Lab
    plane: ControlPlane
    server: Daemon
    client: Daemon
    token: Path

    def issue(self, account: str = ACCOUNT, audience: str = AUDIENCE, pod: str = POD) -> None:
        """As kubelet asks for one (TokenRequest), and where it would put it."""
        words = ["create", "token", account, f"--namespace={NAMESPACE}", f"--audience={audience}", "--duration=600s"]
        if pod:
            words += ["--bound-object-kind=Pod", f"--bound-object-name={pod}"]
        fresh = self.token.with_name("fresh")
        fresh.write_text(self.plane.kubectl(*words))
        fresh.replace(self.token)

    def turned_away(self, cause: str) -> float:
        with suppress(LabError):  # not up yet
            return self.server.metrics().get(f'rhizome_connections_turned_away_total{{cause="{cause}"}}', 0.0)
        return 0.0


def _pod(name: str, account: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"nodeName": NODE, "serviceAccountName": account, "containers": [{"name": "main", "image": "lab"}]},
    }


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with (
        Lab("envoy-sni", seed_pods=1) as lab,
        ControlPlane(lab.seed_pods[0], address=addresses.seed_pod(1).v4, own_issuer=True) as plane,
    ):
        wait_until(
            lambda: NAMESPACE in plane.kubectl("get", "namespaces", check=False), "the namespace kube-system", 60, 0.5
        )
        plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        for account, pod in ((ACCOUNT, POD), ("other", "other-pod")):
            metadata = {"name": account, "namespace": NAMESPACE}
            plane.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, _pod(pod, account))
        server = lab.seed_server(
            oidc_issuers=[plane.url], oidc_subjects=[f"{SUBJECT}=shoot-client"], oidc_ca=str(plane.ca.certificate)
        )
        token = lab.node.directory / "token"
        client = lab.shoot_client(token_file=str(token))
        for name in ("tls_certificate", "tls_key"):
            del client.settings[name]
        made = Scene(lab, plane, server, client, token)
        made.issue()
        server.start()
        client.start()
        yield made


def test_1_keys_that_nobody_may_read_let_nobody_in(scene: Scene) -> None:
    """As kube-apiserver is by default. The log says which right is missing."""
    wait_until(lambda: scene.turned_away("token_keys") >= 1, "a refusal", 60)
    assert "system:service-account-issuer-discovery" in scene.server.log()
    scene.plane.kubectl(
        *("create", "clusterrolebinding", "discovery", "--group=system:unauthenticated"),
        "--clusterrole=system:service-account-issuer-discovery",
    )


def test_2_a_projected_token_opens_the_tunnel(scene: Scene) -> None:
    scene.client.wait_ready(90)
    (peer,) = scene.server.status().peers
    assert peer.name == NODE, "named after the node that kube-apiserver has written into the token"
    page = json.loads(
        scene.lab.seed.run(["curl", "-gsS", "-m5", f"http://{addresses.pod(1).v4}:{addresses.HTTP_PORT}/"]).stdout
    )
    assert page["machine"] == "pod1"
    assert scene.lab.came_the_right_way()
    left_s = scene.client.status().grant_expires_in_s
    assert left_s is not None and left_s <= 600, "no longer than the token"


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"audience": "spiffe://another/seed-server"}, "token_audience"),
        ({"audience": "https://kubernetes.default.svc"}, "token_audience"),
        ({"account": "other", "pod": "other-pod"}, "token_subject"),
        ({"pod": ""}, "token_subject"),
    ],
    ids=["another-server", "kube-apiserver", "another-account", "bound-to-nothing"],
)
def test_3_no_other_token_does(scene: Scene, given: dict[str, str], cause: str) -> None:
    before = scene.turned_away(cause)
    scene.issue(**given)
    scene.client.stop()
    scene.lab.node.run([program("rhizome-agent"), "cleanup"])
    scene.client.start()
    wait_until(lambda: scene.turned_away(cause) > before, "the refusal", 60)
    assert not scene.client.ready()


def test_4_an_api_server_that_is_away_is_not_missed(scene: Scene) -> None:
    """Its keys are known, and good for an hour."""
    scene.issue()
    scene.client.wait_ready(90)
    scene.plane.api_server.kill()
    scene.client.stop()
    scene.lab.node.run([program("rhizome-agent"), "cleanup"])
    scene.client.start()
    scene.client.wait_ready(60)
    token = scene.token.read_text().strip()
    assert not any(part in scene.server.log() + scene.client.log() for part in token.split(".")[1:])
