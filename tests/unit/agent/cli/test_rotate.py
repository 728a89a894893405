"""`rhizome-agent rotate`: the order reaches the seed server's daemon, or the command says why not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.cli import rotate
from agent.status import RoleStatus, Verdict


def status(role: str) -> RoleStatus:
    return RoleStatus(role, "a", "rz-seed", Verdict.UP, "", 0.0)


@pytest.mark.parametrize(
    ("flags", "file", "words"),
    [
        ([], "rz-seed.rotate", "rz-seed: every client gets a new preshared key; sessions go on\n"),
        (
            ["--wireguard-keys"],
            "rz-seed.rotate-wireguard",
            "rz-seed: WireGuard's keys are being replaced; `rhizome-agent status` says when that is done\n",
        ),
    ],
)
def test_the_order_is_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    file: str,
    words: str,
) -> None:
    monkeypatch.setattr(rotate, "collect", lambda _: [status("seed-server"), status("shoot-client")])
    asked = tmp_path / file

    def daemon() -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until and not asked.exists():
            time.sleep(0.01)
        asked.unlink()

    thread = threading.Thread(target=daemon)
    thread.start()
    assert main(["rotate", *flags, "--runtime-dir", str(tmp_path)]) == 0
    thread.join()
    assert capsys.readouterr().out == words


def test_nobody_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rotate, "PATIENCE_S", 0.1)
    monkeypatch.setattr(rotate, "collect", lambda _: [status("seed-server")])
    assert main(["rotate", "--runtime-dir", str(tmp_path)]) != 0
    assert "did not take the order" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nor shall it be taken later"
    monkeypatch.setattr(rotate, "collect", lambda _: [status("shoot-client")])
    assert main(["rotate", "--runtime-dir", str(tmp_path)]) != 0
    assert "no seed server runs" in capsys.readouterr().err
