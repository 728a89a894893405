"""The charts at a real kube-apiserver: installed, upgraded, rolled back and uninstalled, and nothing is left; its own validation and Pod
Security's word on the pods. Nothing runs here: there is no scheduler and no kubelet. Kinds of other projects are foreign-kinds.yaml's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.helm import CHARTS, EXAMPLES, MATRIX, ROOT, SEED, HelmError, Values, helm, objects, only, pod, text
from lab.kube import ControlPlane, Here

pytestmark = pytest.mark.kube

FOREIGN = yaml.safe_load((Path(__file__).parent / "foreign-kinds.yaml").read_text())["items"]
LEVELS = ("baseline", "privileged")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Without the protection of volumes in use, whose finalizer only a controller takes off."""
    off = ["--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection"]
    with ControlPlane(Here(tmp_path_factory.mktemp("charts")), options=off) as made:
        made.apply(*FOREIGN)
        for item in FOREIGN:
            made.kubectl("wait", "--for=condition=Established", f"crd/{item['metadata']['name']}", "--timeout=30s")
        for namespace in ("seed", "shoot", "ingress", "shoot--garden--a", *LEVELS):
            labels = {"pod-security.kubernetes.io/enforce": namespace} if namespace in LEVELS else {}
            made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
        yield made


def full(chart: str) -> Path:
    """Everything switched on."""
    return CHARTS / chart / "ci/full-values.yaml"


def everything(plane: ControlPlane, namespace: str) -> set[str]:
    """All objects of a namespace, events aside, and what charts make outside of any."""
    verbs = plane.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
    kinds = ",".join(sorted(kind for kind in verbs if not kind.startswith(("events", "pods.metrics"))))
    rbac = plane.kubectl(
        "get", "clusterroles,clusterrolebindings", "--output=name", "--selector=app.kubernetes.io/part-of=rhizome"
    )
    return {*plane.kubectl("get", kinds, "--namespace", namespace, "--output=name").split(), *rbac.split()}


@pytest.mark.parametrize("chart", EXAMPLES)
def test_install_upgrade_rollback_uninstall_leaves_nothing(chart: str, plane: ControlPlane) -> None:
    namespace = "seed" if chart == SEED else "shoot"
    at = ("--namespace", namespace, "--kubeconfig", str(plane.kubeconfig))
    before = everything(plane, namespace)

    def spec() -> Any:
        kind = "deployment" if chart == SEED else "daemonset"
        (item,) = json.loads(plane.kubectl("get", kind, "--namespace", namespace, "--output=json"))["items"]
        return item["spec"]

    def upgrade(file: Path, values: Values) -> None:
        words = ("--values", str(file), "--values", "-", "--history-max", "0")
        helm("upgrade", "vpn", str(CHARTS / chart), *at, *words, stdin=yaml.safe_dump(dict(values)))

    helm("install", "vpn", str(CHARTS / chart), *at, "--values", str(EXAMPLES[chart]))
    installed, first = everything(plane, namespace), spec()
    assert len(installed - before) >= 4
    upgrade(full(chart), {"settings": {"control_plane": "shoot--garden--a"}})
    assert everything(plane, namespace) > installed
    assert spec() != first
    for values in (values for name, values in MATRIX if name == chart):
        upgrade(EXAMPLES[chart], values)
    helm("rollback", "vpn", "1", *at)
    assert spec() == first
    assert {name for name in everything(plane, namespace) if "secret/" not in name} == {
        name for name in installed if "secret/" not in name
    }
    helm("uninstall", "vpn", *at)
    assert everything(plane, namespace) == before


def dry_run(plane: ControlPlane, path: Path, manifest: str) -> str:
    """What the API server says to each object, with every field checked; nothing is kept."""
    path.write_text(manifest)
    words = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", str(path))
    return plane.kubectl(*words, check=False)


@pytest.mark.parametrize("chart", EXAMPLES)
def test_server_side_apply_knows_every_field(chart: str, plane: ControlPlane, tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    manifests = [text(chart, full(chart)), *(text(chart, EXAMPLES[chart], values=v) for c, v in MATRIX if c == chart)]
    for manifest in manifests:
        said = dry_run(plane, path, manifest)
        assert said.count("serverside-applied") == len(objects(manifest)), said
    for item in objects(manifests[0]):
        if "spec" in item:
            wrong = item | {"spec": item["spec"] | {"replicaz": 1}}
            assert "replicaz" in dry_run(plane, path, yaml.safe_dump(wrong)), item["kind"]


def test_the_gateway_api_example_has_only_fields_that_are_known(plane: ControlPlane, tmp_path: Path) -> None:
    manifest = (ROOT / "examples/ingress/gateway-api.yaml").read_text()
    said = dry_run(plane, tmp_path / "all.yaml", manifest)
    assert said.count("serverside-applied") == 3, said


def test_a_sidecars_patch_leaves_the_rest_of_the_pod_alone(plane: ControlPlane, tmp_path: Path) -> None:
    own = {
        "name": "kube-apiserver",
        "image": "kube-apiserver",
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "initContainers": [{"name": "first", "image": "x"}],
        "containers": [own],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    labels = {"app": "kubernetes"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "kube-apiserver", "namespace": "seed"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }
    plane.kubectl("create", "--filename", "-", stdin=json.dumps(deployment))
    try:
        patch = tmp_path / "patch.yaml"
        config = only(objects(text(SEED, full(SEED))), "ConfigMap", "-sidecar-kube-apiserver")
        patch.write_text(config["data"]["pod-patch.yaml"])
        for _ in range(2):
            plane.kubectl("patch", "deployment", "kube-apiserver", "--namespace", "seed", "--patch-file", str(patch))
            got = json.loads(
                plane.kubectl("get", "deployment", "kube-apiserver", "--namespace", "seed", "--output=json")
            )
            pod_spec = got["spec"]["template"]["spec"]
            assert {c["name"] for c in pod_spec["initContainers"]} == {"first", "rhizome-sidecar"}
            assert [c["volumeMounts"] for c in pod_spec["containers"]] == [own["volumeMounts"]]
            assert len(pod_spec["volumes"]) == 5
        (sidecar,) = [c for c in pod_spec["initContainers"] if c["name"] == "rhizome-sidecar"]
        assert sidecar["restartPolicy"] == "Always"
    finally:
        plane.kubectl("delete", "deployment", "kube-apiserver", "--namespace", "seed")


@pytest.mark.parametrize("chart", EXAMPLES)
def test_pod_security_wants_a_privileged_namespace(chart: str, plane: ControlPlane) -> None:
    """As docs/install.md says: NET_ADMIN is not in `baseline`, whatever else is given up."""
    template = pod(objects(text(chart, EXAMPLES[chart], values={"priorityClassName": ""})))
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": template["spec"]}
    dry = ("create", "--dry-run=server", "--filename", "-")
    assert "created" in plane.kubectl(*dry, "--namespace", "privileged", stdin=json.dumps(made))
    refused = plane.kubectl(*dry, "--namespace", "baseline", stdin=json.dumps(made), check=False)
    assert "violates PodSecurity" in refused and "NET_ADMIN" in refused


def test_a_second_release_of_one_control_plane_is_refused(plane: ControlPlane) -> None:
    """The Service is there already, and it is the other one's."""
    at = ("--namespace", "seed", "--kubeconfig", str(plane.kubeconfig), "--values", str(EXAMPLES[SEED]))
    helm("install", "one", str(CHARTS / SEED), *at)
    try:
        with pytest.raises(HelmError, match="vpn-seed-server"):
            helm("install", "two", str(CHARTS / SEED), *at)
    finally:
        helm("uninstall", "one", *at[:4])
