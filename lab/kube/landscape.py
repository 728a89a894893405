"""A control plane in the seed, a shoot behind NAT, and the tunnel between them: what `make demo-kube` shows and tests/kube tests.

Nothing but the tunnel leads from the control plane to the shoot. How kube-apiserver gets into it is the wiring.
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, ExitStack
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import addresses
from lab.daemons import Value, program
from lab.freeze import frozen
from lab.kube.certificates import Authority
from lab.kube.plane import API_SERVER_USER, ControlPlane, Egress
from lab.kube.shoot import API_SERVICE, Shoot
from lab.lab import Lab
from lab.namespaces import Machine
from lab.processes import wait_until

EGRESS_PORT = 9443
#: Whoever types kubectl while there is no tunnel is told so within this time.
REFUSAL_S = 15.0
_LOAD = Path(__file__).parent / "load.py"


class Wiring(Enum):
    """How kube-apiserver gets into the tunnel. The value is for test names and people."""

    EGRESS_UDS = "egress-uds"
    EGRESS_MTLS = "egress-mtls"
    SIDECAR = "sidecar"

    @property
    def words(self) -> str:
        return {
            Wiring.EGRESS_UDS: "the egress proxy's Unix socket",
            Wiring.EGRESS_MTLS: "the egress proxy's TCP port, with TLS and a client certificate",
            Wiring.SIDECAR: "routes that a sidecar makes in its pod",
        }[self]

    @property
    def routes_to_endpoints(self) -> bool:
        """Whether kube-apiserver dials the pods behind a service for webhooks and aggregated APIs, and not the service. Both
        are common, so each wiring has one."""
        return self is Wiring.EGRESS_UDS

    @property
    def down_words(self) -> tuple[str, ...]:
        """What whoever types kubectl is told, one of these, while there is no tunnel. Behind routes there is nobody who could
        say the cause: the kernel's words are all that a reset leaves."""
        if self is Wiring.SIDECAR:
            return ("connection refused", "connection reset")
        return ("tunnel down",)


class Landscape:
    """All of it. Between `up` and `down` the tunnel can be closed, opened and frozen."""

    def __init__(self, wiring: Wiring, *, proxy: str = "envoy-sni") -> None:
        self.wiring = wiring
        self.lab = Lab(proxy, seed_pods=1)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def control_plane(self) -> Machine:
        """The pod of kube-apiserver; kubectl runs there too."""
        return self.lab.seed_pods[0]

    def up(self) -> None:
        """Returns when the tunnel is ready and kube-apiserver has found the aggregated API through it."""
        try:
            self.build()
            self.start_tunnel()
            self.start_control_plane()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        self._stack.close()

    def build(self) -> None:
        """The machines, and the daemons with their configuration; nothing is started."""
        self._stack.enter_context(self.lab)
        self.egress, settings = self._egress()
        self.server = self.lab.seed_server(**settings)
        self.client = self.lab.shoot_client()
        self.sidecar = self.lab.sidecar(1, "kube-apiserver") if self.wiring is Wiring.SIDECAR else None
        self.plane = ControlPlane(
            self.control_plane,
            address=addresses.seed_pod(1).v4,
            egress=self.egress,
            service_networks=[addresses.SHOOT_SERVICES[0]],
            options=[f"--enable-aggregator-routing={str(self.wiring.routes_to_endpoints).lower()}"],
        )
        self.shoot = Shoot(self.lab, self.plane)

    def start_tunnel(self) -> None:
        self.server.start()
        self.client.start()
        for daemon in (self.client, self.server):
            daemon.wait_ready()
        if self.sidecar is not None:
            self.sidecar.start()
            self.sidecar.wait_ready()

    def start_control_plane(self) -> None:
        self._stack.enter_context(self.plane)
        self.shoot.start()
        self.shoot.register()
        wait_until(lambda: self.available()["status"] == "True", "the aggregated API being available", 30, 0.2)

    def _egress(self) -> tuple[Egress | None, dict[str, Value]]:
        """What kube-apiserver and the seed server have to be told; nothing when kube-apiserver dials by itself."""
        if self.wiring is Wiring.SIDECAR:
            return None, {}
        if self.wiring is Wiring.EGRESS_UDS:
            socket = self.lab.directory / "egress.sock"
            return Egress(uds=socket), {"egress_socket": str(socket)}
        authority = Authority(self.lab.directory, "egress-ca")
        listen = f"{addresses.SEED.v4}:{EGRESS_PORT}"
        settings: dict[str, Value] = {"egress_listen": [listen], "egress_client_ca": str(authority.certificate)}
        return Egress(
            url=f"https://{listen}", ca=self.lab.pki.directory / "ca.crt", client=authority.issue(API_SERVER_USER)
        ), settings

    # What can be asked.

    def available(self) -> dict[str, str]:
        """The condition `Available` of the aggregated API, as kube-apiserver says."""
        read = json.loads(self.plane.kubectl("get", "apiservice", API_SERVICE, "--output=json"))
        conditions = [c for c in read.get("status", {}).get("conditions", []) if c["type"] == "Available"]
        return conditions[0] if conditions else {"status": "Unknown"}

    def load(self, *words: object) -> dict[str, Any]:
        """What a program of lab.kube.load reports."""
        command = [sys.executable, str(_LOAD), str(self.plane.kubeconfig), *map(str, words)]
        report: dict[str, Any] = json.loads(self.control_plane.run(command, timeout_s=150).stdout)
        return report

    def breaks(self) -> int:
        """How often the seed server lost a stream or a client."""
        log = self.server.log()
        return log.count("stream down: ") + log.count(" is lost: ")

    # What can happen.

    def close_tunnel(self) -> None:
        """The shoot client leaves, with everything that is its: an operator's `rhizome-agent cleanup`."""
        self.client.stop()
        self.lab.node.run([program("rhizome-agent"), "cleanup"])

    def open_tunnel(self) -> None:
        """Returns when both sides are ready again."""
        self.client.start()
        for daemon in (self.client, self.server):
            daemon.wait_ready()

    def frozen_client(self) -> AbstractContextManager[None]:
        """The shoot client, its carrier and its WireGuard stand still for as long as the block lasts."""
        return frozen(self.lab.node)
