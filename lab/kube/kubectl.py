"""What people do with kubectl, for as long as a test needs it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab.kube.landscape import Landscape
from lab.kube.plane import ControlPlane
from lab.processes import Process


@contextmanager
def beside(plane: ControlPlane, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A kubectl that runs for as long as the block lasts. Nobody reads what it prints."""
    command = plane.kubectl_command(*words)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def port_forward(plane: ControlPlane, pod: str, local: int, remote: int) -> Iterator[None]:
    """A port of this machine is one of the pod, for as long as the block lasts."""
    command = plane.kubectl_command("port-forward", f"pod/{pod}", f"{local}:{remote}")
    log = plane.directory / f"port-forward-{local}.log"
    process = Process("port-forward", command, log)
    try:
        process.wait_for_output("Forwarding from 127.0.0.1")
        yield
    finally:
        process.stop()


def asked_twice(landscape: Landscape, once: Callable[[], str], measured: Callable[[str], None]) -> None:
    """`once` says what was wrong. Kubernetes' own streams lose the end of what they carry now and then on a busy machine
    (kubernetes/kubernetes issues 60140 and 124571), and say "Success". That is inside of the TLS connection from kube-apiserver to
    the kubelet, of which nobody on the way can take a part unseen; so what was cut is asked for once more. Not so if the tunnel
    itself broke meanwhile."""
    breaks = landscape.breaks()
    if wrong := once():
        measured(f"the second time, after: {wrong}")
        assert landscape.breaks() == breaks, f"the tunnel broke: {wrong}"
        assert once() == ""
