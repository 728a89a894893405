"""Processes that a lab starts, and how it gets rid of them: by process id, never by name."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

#: A developer's own settings and proxies must not reach what runs in a lab.
_PRIVATE = ("RHIZOME_", "WG_", "PYTEST_")
_PRIVATE_NAMES = {f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO")}


#: All time limits of the lab are multiplied by this: a virtual machine without hardware acceleration is slow.
PATIENCE = float(os.environ.get("RHIZOME_LAB_PATIENCE", "1"))


class LabError(Exception):
    """Something in the lab did not start, did not answer or did not end."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change a daemon's behaviour, plus `extra`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_PRIVATE) and name.upper() not in _PRIVATE_NAMES
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(extra or {})


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 15.0, every_s: float = 0.02) -> float:
    """Seconds until `condition` held. Raises LabError, naming `what`, when it did not within `timeout_s`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s * PATIENCE:
            raise LabError(f"{what}: not within {timeout_s * PATIENCE:g} s")
        time.sleep(every_s)
    return time.monotonic() - start


class Process:
    """One running program whose output goes to a file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(env),
                cwd="/",
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal, as in subprocess."""
        return self._popen.poll()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str, timeout_s: float = 15.0) -> float:
        """Seconds until `text` was in the output. Raises LabError with the last lines when the process ends first."""

        def seen() -> bool:
            found = text in self.output()
            if not found and self.exit_code is not None:
                raise LabError(f"{self.name} ended with exit code {self.exit_code}\n{self.tail()}")
            return found

        try:
            return wait_until(seen, f"{self.name} printing {text!r}", timeout_s)
        except LabError as exc:
            if self.exit_code is None:
                raise LabError(f"{exc}\n{self.tail()}") from exc
            raise

    def tail(self, lines: int = 15) -> str:
        """The last lines of the output, indented, for error messages."""
        return "\n".join("    " + line for line in self.output().splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code. Raises LabError when it runs on for longer than `timeout_s`."""
        try:
            return self._popen.wait(timeout_s * PATIENCE)
        except subprocess.TimeoutExpired as exc:
            raise LabError(f"{self.name} still runs after {timeout_s * PATIENCE:g} s\n{self.tail()}") from exc

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self._popen.kill()
        self._popen.wait()

    def kill_group(self) -> None:
        """SIGKILL to it and to the children that stayed in its process group."""
        os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def stop(self, grace_s: float = 3.0) -> None:
        """SIGTERM, then SIGKILL after `grace_s`. Gone when this returns."""
        self._popen.terminate()
        try:
            self._popen.wait(grace_s * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def __repr__(self) -> str:
        return f"<{self.name} pid {self.pid}>"


def stop_all(processes: Iterable[Process], grace_s: float = 2.0) -> None:
    """End all of them at once: SIGTERM to each, one common grace period, SIGKILL to the rest."""
    running = [process for process in processes if process.exit_code is None]
    for process in running:
        process.signal(signal.SIGTERM)
    with suppress(LabError):
        wait_until(lambda: all(process.exit_code is not None for process in running), "the end", grace_s)
    for process in running:
        process.kill()


def pids_in_network_namespace(path: Path) -> list[int]:
    """Every process whose network namespace is the one mounted at `path`."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            seen = (entry / "ns" / "net").stat()
            if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.name))
    return found


def kill_stray(pids: Callable[[], list[int]], timeout_s: float = 5.0) -> None:
    """SIGKILL what `pids` returns until it returns nothing: daemonised grandchildren that no Process knows."""

    def gone() -> bool:
        alive = pids()
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not alive

    wait_until(gone, "processes of the lab ending after SIGKILL", timeout_s)
