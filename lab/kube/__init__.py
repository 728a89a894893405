"""Real Kubernetes for the lab: etcd and kube-apiserver with TLS everywhere, a node's kubelet endpoint, and people with kubectl.

    with ControlPlane(Here(directory)) as plane:       # on loopback, nothing to tunnel; for tests of Kubernetes clients
        plane.kubectl("get", "namespaces")
        plane.kubeconfig                               # for any client

lab.kube.landscape puts a control plane into the lab's seed and everything it wants to reach into the shoot.
The programs come from scripts/kube-binaries.
"""

from lab.kube.plane import ControlPlane, Egress, Here

__all__ = ["ControlPlane", "Egress", "Here"]
