"""The image's PID 1 child: restarts a crashed daemon, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SUPERVISE = Path(__file__).parents[3] / "scripts" / "supervise"

#: Writes its pid to $1/starts, leaves a companion as a daemon leaves its carrier, and ends with 7 when told so by USR1.
DAEMON = """#!/bin/sh
trap 'kill $sleep; exit 7' USR1
trap 'kill $sleep; exit 0' TERM
[ -e $1/companion ] || { sleep 60 & echo $! > $1/companion; }
sleep 60 & sleep=$!
echo $$ >> $1/starts
wait
"""


def starts(folder: Path) -> list[int]:
    file = folder / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def wait_for_start(folder: Path, number: int) -> int:
    ends = time.monotonic() + 10
    while len(starts(folder)) < number:
        assert time.monotonic() < ends, "the daemon did not start"
        time.sleep(0.01)
    return starts(folder)[-1]


@contextmanager
def supervised(folder: Path) -> Iterator[subprocess.Popen[str]]:
    daemon = folder / "daemon"
    daemon.write_text(DAEMON)
    daemon.chmod(0o755)
    process = subprocess.Popen(
        [SUPERVISE, daemon, folder], stderr=subprocess.PIPE, text=True, start_new_session=True, restore_signals=True
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("killed_by", "code"), [(signal.SIGKILL, 137), (signal.SIGUSR1, 7)])
def test_a_crashed_daemon_is_started_again_and_its_companion_lives_on(
    tmp_path: Path, killed_by: signal.Signals, code: int
) -> None:
    with supervised(tmp_path) as process:
        first = wait_for_start(tmp_path, 1)
        os.kill(first, killed_by)
        second = wait_for_start(tmp_path, 2)
        assert second != first
        os.kill(int((tmp_path / "companion").read_text()), 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert f"ended with {code}; starting it again" in os.read(process.stderr.fileno(), 4096).decode()


@pytest.mark.parametrize("asked_by", [signal.SIGTERM, signal.SIGINT])
def test_being_stopped_stops_the_daemon_and_ends_with_its_code(tmp_path: Path, asked_by: signal.Signals) -> None:
    with supervised(tmp_path) as process:
        wait_for_start(tmp_path, 1)
        process.send_signal(asked_by)
        assert process.wait(10) == 0
        assert len(starts(tmp_path)) == 1


def test_an_egress_proxy_is_drained_after_the_daemon_and_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "rhizome-agent"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nsleep 0.1\necho "$@" > {tmp_path}/told\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RHIZOME_RUNTIME_DIR", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.bind(str(tmp_path / "rz-seed.egress"))
        with supervised(tmp_path) as process:
            wait_for_start(tmp_path, 1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    assert (tmp_path / "told").read_text() == f"drain --runtime-dir {tmp_path}\n"


@pytest.mark.parametrize("code", [0, 2, 3])
def test_what_cannot_get_better_ends_the_container(code: int) -> None:
    done = subprocess.run([SUPERVISE, "sh", "-c", f"exit {code}"], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (code, "")


def test_without_a_command_it_says_how_to_call_it() -> None:
    done = subprocess.run([SUPERVISE], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "usage: supervise COMMAND" in done.stderr
