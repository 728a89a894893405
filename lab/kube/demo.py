"""`make demo-kube`: a real kube-apiserver reaches a shoot through the tunnel, shown with the commands that people type."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from lab import addresses
from lab.kube.landscape import REFUSAL_S, Landscape
from lab.kube.shoot import NODE, POD, SERVICE, WEBHOOK_LABEL
from lab.processes import Process
from lab.steps import step, verdict
from lab.verdict import Check, grouped, proofs

_LINES_SHOWN = 8
_COPY_BYTES = 20_000_000
_LOCAL_PORT = 18080


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command said, on both streams, and how it ended."""

    text: str
    code: int
    seconds: float


class KubeDemo:
    """One run. `run` shows what it does as it goes, and returns what was checked."""

    def __init__(self, landscape: Landscape, console: Console) -> None:
        self.landscape = landscape
        self.checks: list[Check] = []
        self._console = console

    def run(self) -> Sequence[Check]:
        """Raises LabError when something does not even start."""
        landscape = self.landscape
        with step(
            self._console, "a landscape: seed, internet with a proxy, NAT router, shoot node with a pod and a service"
        ):
            landscape.build()
        with step(self._console, "rhizome-seed-server and rhizome-shoot-client: the shoot dials out"):
            landscape.start_tunnel()
        with step(self._console, f"etcd and kube-apiserver in the seed; into the tunnel by {landscape.wiring.words}"):
            landscape.start_control_plane()
        self._look()
        self._use()
        self._call_back()
        self._close()
        return self.checks

    def _look(self) -> None:
        self._kubectl("get", "nodes,pods,services", "--output=wide", proves="kube-apiserver runs", says=NODE)
        self.landscape.shoot.write_log("".join(f"line {number} of the pod's log\n" for number in range(1, 101)))
        self._kubectl("logs", POD, "--tail=3", proves="logs", says="line 100 of the pod's log")

    def _use(self) -> None:
        self._kubectl("exec", POD, "--", "ip", "-brief", "address", proves="exec", says=addresses.pod(1).v4)
        self._kubectl(
            "exec",
            "--stdin",
            POD,
            "--",
            "tr",
            "a-z",
            "A-Z",
            stdin="from the seed\n",
            proves="exec with input",
            says="FROM THE SEED",
        )
        self._kubectl("exec", POD, "--", "sh", "-c", "exit 42", proves="exit codes", says="exit code 42", code=42)
        self._copy()
        self._forward()
        node, service = (
            f"/api/v1/nodes/{NODE}/proxy/healthz",
            f"/api/v1/namespaces/default/services/{SERVICE}:http/proxy/",
        )
        self._kubectl("get", "--raw", node, proves="node proxy", says="ok")
        self._kubectl("get", "--raw", service, proves="service proxy", says='"machine": "pod1"')

    def _call_back(self) -> None:
        """What kube-apiserver itself asks of the shoot."""
        label = ",".join(f"{key}={value}" for key, value in WEBHOOK_LABEL.items())
        metadata = {"name": "demo", "labels": WEBHOOK_LABEL}
        manifest = json.dumps(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"allowed": "no"}}
        )
        self._say(f"a ConfigMap with the label {label} is shown to a webhook in the shoot, by its service's address")
        self._kubectl(
            "create",
            "--filename=-",
            stdin=manifest,
            proves="admission webhook",
            says="the webhook in the shoot says no",
            code=1,
        )
        self._say("greetings are objects of an API server in the shoot, which kube-apiserver aggregates")
        self._kubectl(
            "get",
            "greetings",
            "hello",
            "--output=jsonpath={.spec.text}",
            proves="aggregated API",
            says="hello admin, from the shoot",
        )

    def _close(self) -> None:
        landscape = self.landscape
        with step(self._console, "the shoot client is stopped and everything of it removed"):
            landscape.close_tunnel()
        says = landscape.wiring.down_words
        ran = self._kubectl("logs", POD, proves="without the tunnel", says=says, code=1)
        if ran.seconds > REFUSAL_S:
            self.checks.append(Check("without the tunnel", False, f"kubectl took {ran.seconds:.1f} s to say so"))
        with step(self._console, "the shoot client is started again"):
            landscape.open_tunnel()
        self._kubectl("logs", POD, "--tail=1", proves="with it again", says="line 100 of the pod's log")

    def _copy(self) -> None:
        source = self.landscape.lab.directory / "picture.raw"
        data = hashlib.shake_256(b"rhizome demo").digest(_COPY_BYTES)
        source.write_bytes(data)
        self._say(f"{_COPY_BYTES // 1_000_000} MB into the pod, and their checksum there")
        self._kubectl("cp", str(source), f"{POD}:/run/picture.raw", proves="cp", says="")
        self._kubectl(
            "exec",
            POD,
            "--",
            "sha256sum",
            "/run/picture.raw",
            proves="cp is intact",
            says=hashlib.sha256(data).hexdigest(),
        )

    def _forward(self) -> None:
        words = ["port-forward", f"pod/{POD}", f"{_LOCAL_PORT}:{addresses.HTTP_PORT}"]
        self._command(f"kubectl {shlex.join(words)} &")
        log = self.landscape.plane.directory / "port-forward.log"
        forwarding = Process("port-forward", self.landscape.plane.kubectl_command(*words), log)
        try:
            forwarding.wait_for_output("Forwarding from 127.0.0.1")
            command = ["curl", "-sS", f"http://127.0.0.1:{_LOCAL_PORT}/"]
            self._command(shlex.join(command))
            start = time.monotonic()
            done = self.landscape.control_plane.run(command, check=False)
            ran = Ran(done.stdout + done.stderr, done.returncode, time.monotonic() - start)
            self._judge(ran, "port-forward", ('"machine": "pod1"',), 0)
        finally:
            forwarding.stop()

    def _kubectl(
        self,
        *words: str,
        proves: str,
        says: str | tuple[str, ...],
        stdin: str | None = None,
        code: int = 0,
    ) -> Ran:
        """Type a command, show its output, and check that it says what it should (one of several) and ends as it should."""
        prefix = f"echo {shlex.quote(stdin.strip())} | " if stdin is not None else ""
        self._command(f"{prefix}kubectl {shlex.join(words)}")
        start = time.monotonic()
        done = self.landscape.plane.run_kubectl(*words, stdin=stdin)
        ran = Ran(done.stdout + done.stderr, done.returncode, time.monotonic() - start)
        self._judge(ran, proves, (says,) if isinstance(says, str) else says, code)
        return ran

    def _judge(self, ran: Ran, name: str, says: tuple[str, ...], code: int) -> None:
        lines = ran.text.splitlines()
        for line in lines[:_LINES_SHOWN]:
            self._console.print(f"        {escape(line)}", highlight=False, soft_wrap=True)
        if len(lines) > _LINES_SHOWN:
            self._console.print(f"        ... {len(lines) - _LINES_SHOWN} more lines", style="dim")
        passed = any(text in ran.text for text in says) and ran.code == code
        wanted = "" if passed else f", not {' or '.join(map(repr, says))} and exit code {code}"
        last = lines[-1] if lines else "nothing"
        self.checks.append(Check(name, passed, f"exit code {ran.code} after {ran.seconds:.2f} s, {last}{wanted}"))

    def _say(self, text: str) -> None:
        self._console.print(f"        # {escape(text)}", style="dim", highlight=False, soft_wrap=True)

    def _command(self, text: str) -> None:
        self._console.print(f"      [bold]$ {escape(text)}[/]", highlight=False, soft_wrap=True)


def show(checks: Sequence[Check], console: Console) -> bool:
    """The verdict, for people. Whether everything is true."""
    works = bool(checks) and all(check.passed for check in checks)
    verdict(
        console, works, "A real kube-apiserver reaches the shoot, and only through the tunnel.", grouped(proofs(checks))
    )
    return works
