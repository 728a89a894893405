"""One machine of the lab: a network namespace, and a mount namespace with its own /run, /dev/shm and resolv.conf.

A sleeping process holds the mount namespace, as the pause container does for a Kubernetes pod. So two machines may both
have /run/wireguard/rhizome0.sock, and nothing is ever mounted where the host could see it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.probe import Probe
from lab.processes import PATIENCE, LabError, Process, environment, kill_stray, pids_in_network_namespace, stop_all

_TRAFFIC = Path(__file__).parent / "traffic"

# A resolv.conf that is a link into /run (systemd-resolved, resolvconf) must be found in the /run of the machine's own.
_PAUSE = """
set -e
mount --make-rprivate /
resolv=$(readlink -m /etc/resolv.conf)
case $resolv in
  /run/*) mkdir -p "$(dirname "$1$resolv")" && cp "$1/resolv.conf" "$1$resolv" ;;
  *) mount --bind "$1/resolv.conf" "$resolv" ;;
esac
mount --bind "$1/run" /run
mount -t tmpfs shm /dev/shm
echo ready
exec sleep infinity
"""


class Machine:
    """A network namespace by name, e.g. `rz4711-seed`, and the processes the lab started in it."""

    def __init__(self, name: str, directory: Path, nameservers: Sequence[str]) -> None:
        self.name = name
        self.directory = directory
        self.processes: list[Process] = []
        self._pause: Process | None = None
        (directory / "run").mkdir(parents=True)
        (directory / "resolv.conf").write_text("".join(f"nameserver {address}\n" for address in nameservers))

    def start(self) -> None:
        """Make the namespaces. `wait_ready` waits for them, so that several machines can start at once."""
        _call(["ip", "netns", "add", self.name])
        self._pause = Process(
            f"{self.name} pause",
            [*self._enter_network(), "unshare", "--mount", "sh", "-c", _PAUSE, "sh", str(self.directory)],
            self.directory / "pause.log",
        )

    def wait_ready(self) -> None:
        self._paused().wait_for_output("ready")

    @property
    def path(self) -> Path:
        """The network namespace, as the host sees it."""
        return netns_path(self.name)

    @property
    def proc_path(self) -> Path:
        """The network namespace, as a machine of the lab sees it: each has a /run of its own."""
        return Path(f"/proc/{self.pause_pid}/ns/net")

    @property
    def pause_pid(self) -> int:
        return self._paused().pid

    def _paused(self) -> Process:
        if self._pause is None:
            raise LabError(f"{self.name} was not started")
        return self._pause

    def _enter_network(self) -> list[str]:
        return ["nsenter", f"--net={self.path}"]

    def command(self, argv: Sequence[str]) -> list[str]:
        """The same command, to be started from the host, running inside this machine (working directory: /)."""
        return [*self._enter_network(), f"--mount=/proc/{self.pause_pid}/ns/mnt", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        check: bool = True,
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end. Raises LabError for an exit code other than 0, unless `check` is False, and on timeout."""
        return _call(self.command(argv), input=input, check=check, timeout_s=timeout_s, env=env, shown=argv)

    def spawn(self, argv: Sequence[str], *, name: str | None = None, env: Mapping[str, str] | None = None) -> Process:
        """Start and leave running; output goes to `<machine>/<name>.log`, appended. The lab ends it at the latest."""
        name = name or Path(argv[0]).name
        process = Process(name, self.command(argv), self.directory / f"{name}.log", env)
        self.processes.append(process)
        return process

    def tool(self, module: str, *args: object) -> list[str]:
        """Command line of one of our traffic programs: standard library only, so it starts without site-packages."""
        return [sys.executable, "-I", "-S", str(_TRAFFIC / f"{module}.py"), *map(str, args)]

    def run_tool(self, module: str, *args: object, timeout_s: float = 60.0) -> Any:
        """Run a traffic program to its end and return the JSON object of its last line of output."""
        done = self.run(self.tool(module, *args), timeout_s=timeout_s)
        return json.loads(done.stdout.splitlines()[-1])

    def probe(self, kind: str, host: str, port: int = 0, *, rate: float = 100.0, payload_bytes: int = 64) -> Probe:
        """Ask `rate` times a second, by `udp`, `tcp` (a connection each) or `icmp`, for as long as the `with` block lasts."""
        tool = self.tool("probe", kind, host, port, rate, 0, payload_bytes)
        return Probe(lambda: self.spawn(tool, name=f"probe-{kind}-{len(self.processes)}"))

    def ip(self, *commands: str, family: int | None = None) -> None:
        """Run `ip` commands in one batch, e.g. `link set lo up`. Raises LabError at the first that fails.
        `family` is for what names no address, such as `rule`."""
        options = [] if family is None else [f"-{family}"]
        _call(["ip", *options, "-n", self.name, "-batch", "-"], input="\n".join(commands) + "\n")

    def nft(self, ruleset: str) -> None:
        """Apply nft text atomically."""
        self.run(["nft", "-f", "-"], input=ruleset)

    def counter(self, name: str) -> int:
        """Packets on the named counter of the table `inet lab`."""
        listed = json.loads(self.run(["nft", "-j", "list", "counter", "inet", "lab", name]).stdout)
        return int(next(entry["counter"]["packets"] for entry in listed["nftables"] if "counter" in entry))

    def sysctl(self, **values: str | int) -> None:
        """Set sysctls; a double underscore in a name stands for a dot."""
        self.run(["sysctl", "-qw", *(f"{name.replace('__', '.')}={value}" for name, value in values.items())])

    def destroy(self) -> None:
        """End every process in here, known or not, and remove the namespace. Files stay, they are the lab's."""
        stop_all(self.processes)
        delete_namespace(self.name)
        if self._pause is not None:
            self._pause.wait()


def netns_path(name: str) -> Path:
    return Path("/run/netns") / name


def delete_namespace(name: str) -> None:
    """Kill whatever runs in a network namespace and remove it. No error when it is gone already."""
    path = netns_path(name)
    kill_stray(lambda: pids_in_network_namespace(path))
    if path.exists():
        _call(["ip", "netns", "delete", name])


def _call(
    argv: Sequence[str],
    *,
    input: str | None = None,
    check: bool = True,
    timeout_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    shown: Sequence[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    words = " ".join(shown or argv)
    try:
        done = subprocess.run(
            argv,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout_s * PATIENCE,
            env=environment(env),
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"{words}: still runs after {timeout_s * PATIENCE:g} s") from exc
    if check and done.returncode:
        raise LabError(f"{words}: exit code {done.returncode}\n{done.stderr.strip()}\n{done.stdout.strip()}".rstrip())
    return done
