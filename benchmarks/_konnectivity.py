"""A real konnectivity server with one agent, as the egress proxy's baseline: built from Go modules by scripts/kube-binaries."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from agent.carrier.api import TlsFiles

BINARIES = Path.home() / ".cache" / "rhizome" / "bin"
PROGRAMS = ("konnectivity-server", "konnectivity-agent")
_SCRIPT = Path(__file__).parent.parent / "scripts" / "kube-binaries"
START_TIMEOUT_S = 20.0


def build() -> None:
    """Make sure that the programs are there; the first time takes minutes. Raises CalledProcessError."""
    subprocess.run([_SCRIPT, *PROGRAMS], check=True)


@contextlib.contextmanager
def running(
    directory: Path, front: list[str], server: TlsFiles, agent: TlsFiles, base_port: int
) -> Iterator[tuple[int, int]]:
    """Process ids of a server and its agent, connected. `front` says what kube-apiserver connects to."""
    agent_port, server_admin, server_health, agent_admin, agent_health = range(base_port, base_port + 5)
    server_command = [
        str(BINARIES / "konnectivity-server"),
        "--mode=http-connect",
        *front,
        f"--agent-port={agent_port}",
        f"--admin-port={server_admin}",
        f"--health-port={server_health}",
        f"--cluster-ca-cert={server.ca}",
        f"--cluster-cert={server.certificate}",
        f"--cluster-key={server.key}",
    ]
    agent_command = [
        str(BINARIES / "konnectivity-agent"),
        "--proxy-server-host=127.0.0.1",
        f"--proxy-server-port={agent_port}",
        f"--admin-server-port={agent_admin}",
        f"--health-server-port={agent_health}",
        f"--ca-cert={agent.ca}",
        f"--agent-cert={agent.certificate}",
        f"--agent-key={agent.key}",
    ]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((directory / f"konnectivity-{base_port}.log").open("ab"))
        processes = [_spawn(stack, command, log.fileno()) for command in (server_command, agent_command)]
        _wait_ready(f"http://127.0.0.1:{server_health}/readyz", processes, Path(log.name))
        yield processes[0].pid, processes[1].pid


def _spawn(stack: contextlib.ExitStack, command: list[str], log: int) -> subprocess.Popen[bytes]:
    process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
    stack.callback(process.kill)
    return process


def _wait_ready(url: str, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.1)
    raise RuntimeError(f"konnectivity does not start:\n{log.read_text()[-2000:]}")
