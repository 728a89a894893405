"""What a kube-apiserver wants to reach in a shoot: a node's kubelet endpoint, a pod, a service with a webhook and an API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lab import addresses
from lab.kube.backend import GROUP
from lab.kube.binaries import binary
from lab.kube.certificates import Authority
from lab.kube.plane import ControlPlane
from lab.lab import Lab
from lab.processes import Process

KUBELET_PORT = 10250
NODE = "node-1"
NAMESPACE = "default"
POD = "web"
SERVICE = "backend"
API_SERVICE = f"v1.{GROUP}"
#: A ConfigMap with this label is shown to the webhook.
WEBHOOK_LABEL = {"ask": "webhook"}
_BACKEND = Path(__file__).parent / "backend.py"
_SERVICE_NAME = f"{SERVICE}.{NAMESPACE}.svc"


class Shoot:
    """One node with one pod, which a service leads to. The servers run in the lab; `register` tells the control plane."""

    def __init__(self, lab: Lab, plane: ControlPlane) -> None:
        self._lab = lab
        self._plane = plane
        self._authority = Authority(lab.directory, "shoot-ca")
        self._serving = self._authority.issue("backend", names=[_SERVICE_NAME])
        #: What `kubectl logs` shows.
        self.log = lab.pod.directory / "container.log"
        self.log.touch()

    def start(self) -> None:
        """The servers; they listen when this returns."""
        self.kubelet = self._start_kubelet()
        self.backend = self._start_backend()
        self.kubelet.wait_for_output("ready")

    def register(self) -> None:
        """Node, pod, service, webhook and aggregated API, as controllers and a kubelet would have made them."""
        self._plane.apply(_node(), _pod(), _service(), _endpoints(), _endpoint_slice())
        status = {"status": _pod_status()}
        self._plane.kubectl(
            "patch", "pod", POD, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}"
        )
        self._plane.apply(_webhook(self._authority.bundle), _api_service(self._authority.bundle))

    def write_log(self, text: str) -> None:
        """The container says something."""
        with self.log.open("a") as log:
            log.write(text)

    def _start_kubelet(self) -> Process:
        node, pod = self._lab.node, self._lab.pod
        serving = self._plane.ca.issue(f"system:node:{NODE}", groups=["system:nodes"], names=[*addresses.node(1)])
        config = {
            "listen": f":{KUBELET_PORT}",
            "certificate": str(serving.certificate),
            "key": str(serving.key),
            "client_ca": str(self._plane.ca.certificate),
            "pods": {
                f"{NAMESPACE}/{POD}": {
                    "enter": ["nsenter", f"--net={pod.proc_path}", f"--mount=/proc/{pod.pause_pid}/ns/mnt", "--"],
                    "log": str(self.log),
                    "network": str(pod.proc_path),
                }
            },
        }
        path = node.directory / "kubelet.json"
        path.write_text(json.dumps(config, indent=2))
        return node.spawn([binary("lab-kubelet"), str(path)], name="kubelet")

    def _start_backend(self) -> Process:
        files = [str(self._serving.certificate), str(self._serving.key)]
        # Without -I and -S: it needs aiohttp.
        command = [sys.executable, str(_BACKEND), str(addresses.HTTPS_PORT), *files]
        return self._lab.pod.spawn(command, name="backend")


def _metadata(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": NAMESPACE, **more}


def _node() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": addresses.node(1).v4},
                {"type": "Hostname", "address": NODE},
            ],
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "Lab", "message": "the lab's kubelet endpoint"}
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        },
    }


def _pod() -> dict[str, Any]:
    container = {"name": "main", "image": "lab", "ports": [{"name": "http", "containerPort": addresses.HTTP_PORT}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(POD, labels={"app": SERVICE}),
        "spec": {"nodeName": NODE, "containers": [container]},
    }


def _pod_status() -> dict[str, Any]:
    address = addresses.pod(1).v4
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": addresses.node(1).v4,
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {
                "name": "main",
                "image": "lab",
                "imageID": "lab",
                "ready": True,
                "restartCount": 0,
                "started": True,
                "state": {"running": {}},
            }
        ],
    }


_PORTS = {"http": (80, addresses.HTTP_PORT), "https": (443, addresses.HTTPS_PORT)}


def _service() -> dict[str, Any]:
    ports = [{"name": name, "port": port, "targetPort": target} for name, (port, target) in _PORTS.items()]
    spec = {"clusterIP": addresses.SERVICE.v4, "selector": {"app": SERVICE}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(SERVICE), "spec": spec}


def _endpoints() -> dict[str, Any]:
    """What `services/proxy` reads; it goes to addresses of pods alone."""
    address = {"ip": addresses.pod(1).v4, "targetRef": {"kind": "Pod", "name": POD, "namespace": NAMESPACE}}
    ports = [{"name": name, "port": target} for name, (_, target) in _PORTS.items()]
    subset = {"addresses": [address], "ports": ports}
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": _metadata(SERVICE), "subsets": [subset]}


def _endpoint_slice() -> dict[str, Any]:
    """What the aggregator reads."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(f"{SERVICE}-1", labels={"kubernetes.io/service-name": SERVICE}),
        "addressType": "IPv4",
        "ports": [{"name": name, "port": target, "protocol": "TCP"} for name, (_, target) in _PORTS.items()],
        "endpoints": [{"addresses": [addresses.pod(1).v4], "conditions": {"ready": True}}],
    }


def _webhook(bundle: str) -> dict[str, Any]:
    hook = {
        "name": "configmaps.lab.rhizome.test",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 10,
        "objectSelector": {"matchLabels": WEBHOOK_LABEL},
        "clientConfig": {
            "service": {"namespace": NAMESPACE, "name": SERVICE, "path": "/validate", "port": 443},
            "caBundle": bundle,
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "lab"},
        "webhooks": [hook],
    }


def _api_service(bundle: str) -> dict[str, Any]:
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API_SERVICE},
        "spec": {
            "group": GROUP,
            "version": "v1",
            "groupPriorityMinimum": 1000,
            "versionPriority": 10,
            "service": {"namespace": NAMESPACE, "name": SERVICE, "port": 443},
            "caBundle": bundle,
        },
    }
