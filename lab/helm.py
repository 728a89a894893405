"""Helm, from the wheel in .venv: the charts rendered as objects, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CHARTS = ROOT / "charts"
SEED = "rhizome-seed-server"
SHOOT = "rhizome-shoot-client"

Values = Mapping[str, Any]
Object = dict[str, Any]

#: The values that docs/install.md shows.
EXAMPLES = {SEED: ROOT / "examples/charts/seed-server.yaml", SHOOT: ROOT / "examples/charts/shoot-client.yaml"}
#: Values on top of the example's: what Kubernetes has to take.
MATRIX: Sequence[tuple[str, Values]] = [
    *((chart, {}) for chart in EXAMPLES),
    (SEED, {"egress": {"enabled": True, "clientCA": {"secretName": "ca"}}}),
    (SEED, {"egress": {"enabled": True, "clientCA": {"secretName": "ca"}, "selector": {"enabled": False}}}),
    (SEED, {"persistence": {"enabled": True}, "podDisruptionBudget": {"enabled": False}, "replicas": 0}),
    (SEED, {"ledger": {"enabled": True, "name": "tunnels"}, "networkPolicy": {"enabled": False}}),
    (SEED, {"networkPolicy": {"enabled": False}, "podMonitor": {"enabled": True}, "userspaceWireGuard": True}),
    (SEED, {"tls": {"secretName": "", "certManager": {"enabled": True, "issuerRef": {"name": "ca"}}}}),
    (SEED, {"sidecars": [{"name": "prometheus", "tls": {"secretName": "vpn"}}]}),
    (SEED, {"settings": {"direct_endpoints": ["10.0.0.1:51821"]}}),
    (SEED, {"service": {"type": "LoadBalancer", "ipFamilyPolicy": "SingleStack"}, "fullnameOverride": "vpn"}),
    (SHOOT, {"cleanup": True}),
    (SHOOT, {"settings": {"node_object": True}}),
    (SHOOT, {"tls": {"source": "hostPath", "hostPath": {"path": "/var/lib/rhizome/tls"}}}),
    (SHOOT, {"settings": {"health_listen": "[::1]:9842"}, "priorityClassName": "", "nodeSelector": {}}),
    (SHOOT, {"proxyCredentials": {"secretName": "proxy"}, "updateStrategy": {"type": "OnDelete"}}),
]


class HelmError(Exception):
    """What helm said on stderr."""


def helm(*words: str, stdin: str = "") -> str:
    """Standard output. Raises HelmError."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "helm"), *words], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def text(chart: str, *files: Path, values: Values | None = None, kube: str = "1.34.0") -> str:
    """What `helm template` gives for values files and more values on top."""
    words = [word for file in files for word in ("--values", str(file))]
    return helm(
        *("template", "vpn", str(CHARTS / chart), "--namespace", "shoot--garden--a", "--kube-version", kube),
        *words,
        *("--values", "-"),
        stdin=yaml.safe_dump(dict(values or {})),
    )


def objects(rendered: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(rendered) if document]


def only(found: Sequence[Object], kind: str, name: str = "") -> Object:
    """The one object of a kind (and with a name that ends so)."""
    (one,) = [item for item in found if item["kind"] == kind and item["metadata"]["name"].endswith(name)]
    return one


def pod(found: Sequence[Object]) -> Object:
    """The pod's specification of the one workload."""
    (one,) = [item for item in found if item["kind"] in ("Deployment", "DaemonSet")]
    template: Object = one["spec"]["template"]
    return template
