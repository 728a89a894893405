"""A control plane: one etcd and one kube-apiserver, real ones, with TLS and certificates everywhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab.kube.binaries import binary
from lab.kube.certificates import Authority, Pair, write_key
from lab.loopback import free_port
from lab.processes import PATIENCE, LabError, Process, environment, stop_all, wait_until

#: kube-apiserver's identity at kubelets and at egress proxies.
API_SERVER_USER = "kube-apiserver"
FRONT_PROXY_USER = "front-proxy-client"
_SERVICE_ACCOUNT_ISSUER = "https://kubernetes.default.svc"


class Place(Protocol):
    """Where programs run. A lab's Machine is one; `Here` is another."""

    directory: Path

    def spawn(
        self, argv: Sequence[str], *, name: str | None = None, env: Mapping[str, str] | None = None
    ) -> Process: ...

    def command(self, argv: Sequence[str]) -> list[str]: ...


class Here:
    """This machine, without any namespace; files and logs go to `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def spawn(self, argv: Sequence[str], *, name: str | None = None, env: Mapping[str, str] | None = None) -> Process:
        name = name or Path(argv[0]).name
        return Process(name, argv, self.directory / f"{name}.log", env)

    def command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)


@dataclass(frozen=True, slots=True)
class Egress:
    """An HTTPConnect proxy that kube-apiserver uses for nodes, pods and services: a Unix socket's path, or an https URL
    with the CA of its certificate and a client certificate."""

    uds: Path | None = None
    url: str = ""
    ca: Path = Path()
    client: Pair = field(default_factory=lambda: Pair(Path(), Path()))

    def configuration(self) -> str:
        """An EgressSelectorConfiguration. JSON is YAML."""
        transport: dict[str, Any] = (
            {"uds": {"udsName": str(self.uds)}}
            if self.uds is not None
            else {
                "tcp": {
                    "url": self.url,
                    "tlsConfig": {
                        "caBundle": str(self.ca),
                        "clientCert": str(self.client.certificate),
                        "clientKey": str(self.client.key),
                    },
                }
            }
        )
        selection = {"name": "cluster", "connection": {"proxyProtocol": "HTTPConnect", "transport": transport}}
        return json.dumps(
            {
                "apiVersion": "apiserver.k8s.io/v1beta1",
                "kind": "EgressSelectorConfiguration",
                "egressSelections": [selection],
            },
            indent=2,
        )


class ControlPlane:
    """etcd and kube-apiserver in one place, reachable at `address`. `egress` None: kube-apiserver dials everything itself.

    `own_issuer`: it issues tokens in the name of its own URL, where its keys can be discovered from outside of the cluster.

    `options` are more flags of kube-apiserver, which win over those set here, e.g. ["--enable-aggregator-routing=true"].
    """

    def __init__(
        self,
        place: Place,
        *,
        address: str = "127.0.0.1",
        egress: Egress | None = None,
        service_networks: Sequence[str] = ("10.50.0.0/24",),
        options: Sequence[str] = (),
        own_issuer: bool = False,
    ) -> None:
        self.place = place
        self.address = address
        self.directory = place.directory / "kubernetes"
        self.directory.mkdir()
        self.ca = Authority(self.directory, "kubernetes-ca")
        self.front_proxy = Authority(self.directory, "front-proxy-ca")
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self._egress = egress
        self._service_networks = service_networks
        self._options = options
        self._own_issuer = own_issuer
        self._port = free_port()
        self.processes: list[Process] = []

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self._port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when kube-apiserver is ready. Raises LabError with the end of a log when that does not happen."""
        self._write_kubeconfig()
        etcd = self._start_etcd()
        self._api_server_flags = [*self._flags(etcd), *self._options]
        self.start_api_server()

    def start_api_server(self) -> None:
        """Also again, after it was killed. Returns when it is ready."""
        self.api_server = self._spawn("kube-apiserver", self._api_server_flags)
        wait_until(self._ready, "kube-apiserver being ready", timeout_s=60, every_s=0.1)

    def stop(self) -> None:
        stop_all(self.processes, grace_s=5)

    def kubectl(self, *words: str, stdin: str | None = None, timeout_s: float = 60.0, check: bool = True) -> str:
        """The output of kubectl as cluster administrator. Raises LabError for an exit code other than 0, unless `check`
        is False: then the errors are part of what is returned."""
        done = self.run_kubectl(*words, stdin=stdin, timeout_s=timeout_s)
        if check and done.returncode:
            raise LabError(f"kubectl {' '.join(words)}: exit code {done.returncode}\n{done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def run_kubectl(
        self, *words: str, stdin: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Raises LabError when it does not end in time."""
        try:
            return subprocess.run(
                self.kubectl_command(*words),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                timeout=timeout_s * PATIENCE,
                env=environment(),
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise LabError(f"kubectl {' '.join(words)}: still runs after {timeout_s * PATIENCE:g} s") from exc

    def kubectl_command(self, *words: str) -> list[str]:
        """To be started from here, running where the control plane is."""
        cache = f"--cache-dir={self.directory / 'kubectl-cache'}"
        return self.place.command([binary("kubectl"), f"--kubeconfig={self.kubeconfig}", cache, *words])

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change Kubernetes objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))

    def _spawn(self, name: str, flags: Sequence[str]) -> Process:
        process = self.place.spawn([binary(name), *flags], name=name)
        self.processes.append(process)
        return process

    def _ready(self) -> bool:
        if self.api_server.exit_code is not None:
            raise LabError(f"kube-apiserver ended with {self.api_server.exit_code}\n{self.api_server.tail(30)}")
        return self.run_kubectl("get", "--raw", "/readyz", "--request-timeout=2s").returncode == 0

    def _start_etcd(self) -> list[str]:
        """Flags with which kube-apiserver finds it."""
        authority = Authority(self.directory, "etcd-ca")
        server = authority.issue("etcd", names=["127.0.0.1"])
        client = authority.issue(API_SERVER_USER)
        for_clients, for_peers = f"https://127.0.0.1:{free_port()}", f"https://127.0.0.1:{free_port()}"
        self._spawn(
            "etcd",
            [
                "--name=lab",
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={for_clients}",
                f"--advertise-client-urls={for_clients}",
                f"--listen-peer-urls={for_peers}",
                f"--initial-advertise-peer-urls={for_peers}",
                f"--initial-cluster=lab={for_peers}",
                "--client-cert-auth",
                f"--trusted-ca-file={authority.certificate}",
                f"--cert-file={server.certificate}",
                f"--key-file={server.key}",
                "--peer-client-cert-auth",
                f"--peer-trusted-ca-file={authority.certificate}",
                f"--peer-cert-file={server.certificate}",
                f"--peer-key-file={server.key}",
                "--unsafe-no-fsync",  # the data dies with the lab
            ],
        )
        return [
            f"--etcd-servers={for_clients}",
            f"--etcd-cafile={authority.certificate}",
            f"--etcd-certfile={client.certificate}",
            f"--etcd-keyfile={client.key}",
        ]

    def _flags(self, etcd: Sequence[str]) -> list[str]:
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", self.address]
        serving = self.ca.issue("kubernetes", names=list(dict.fromkeys(names)))
        to_kubelets = self.ca.issue(API_SERVER_USER)
        as_front_proxy = self.front_proxy.issue(FRONT_PROXY_USER)
        accounts = self._service_account_keys()
        flags = [
            *etcd,
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.ca.certificate}",
            "--authorization-mode=Node,RBAC",
            f"--service-account-issuer={self.url if self._own_issuer else _SERVICE_ACCOUNT_ISSUER}",
            f"--service-account-key-file={accounts.certificate}",
            f"--service-account-signing-key-file={accounts.key}",
            f"--service-cluster-ip-range={','.join(self._service_networks)}",
            f"--kubelet-certificate-authority={self.ca.certificate}",
            f"--kubelet-client-certificate={to_kubelets.certificate}",
            f"--kubelet-client-key={to_kubelets.key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={self.front_proxy.certificate}",
            f"--requestheader-allowed-names={FRONT_PROXY_USER}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={as_front_proxy.certificate}",
            f"--proxy-client-key-file={as_front_proxy.key}",
            "--disable-admission-plugins=ServiceAccount",  # nothing here makes the accounts that it asks for
            "--endpoint-reconciler-type=none",
        ]
        if self._egress is not None:
            selector = self.directory / "egress.json"
            selector.write_text(self._egress.configuration())
            flags.append(f"--egress-selector-config-file={selector}")
        return flags

    def _service_account_keys(self) -> Pair:
        """The key that signs tokens, and its public half."""
        key = ec.generate_private_key(ec.SECP256R1())
        pair = Pair(self.directory / "service-accounts.pub", self.directory / "service-accounts.key")
        write_key(pair.key, key)
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        pair.certificate.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
        return pair

    def _write_kubeconfig(self) -> None:
        admin = self.ca.issue("admin", groups=["system:masters"])
        cluster = {"server": self.url, "certificate-authority": str(self.ca.certificate)}
        user = {"client-certificate": str(admin.certificate), "client-key": str(admin.key)}
        text = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "lab", "cluster": cluster}],
                "users": [{"name": "admin", "user": user}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
                "current-context": "lab",
            },
            indent=2,
        )
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(text)
