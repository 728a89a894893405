"""`rhizome-agent doctor`: the verdict first, what fails with its next step, and an exit code for scripts."""

from __future__ import annotations

import json
import os
import resource
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.checks import CLIENT, SEED_SERVER
from agent.cli import doctor as cli
from agent.doctor import Looks, Process, examine
from agent.exits import Exit
from agent.status import Counters, PathHealth, PeerHealth, RoleStatus, Verdict
from tests.unit.agent.cli.test_status import Roles

WELL = RoleStatus("seed-server", "shoot--a", "rz-seed", Verdict.UP, "the shoot is reached", 60.0)
DOWN = replace(WELL, verdict=Verdict.DOWN, sentence="no client is connected", since_s=12.0, peers=(PeerHealth("n1"),))
NODE = replace(WELL, role="shoot-client", ifname="rz-shoot", paths=(PathHealth("stream", "SNI", "up"),))
BROKEN = """\
rz-seed (seed-server of shoot--a): 2 of 19 checks fail: RhizomeTunnelDown, RhizomeCanaryFailing

bad   RhizomeTunnelDown (critical)
      seen     DOWN for 12s: no client is connected
      do       No client at all: check the proxy in front (does it pass on the SNI or header of this control plane?), then the shoot's nodes.
      runbook  docs/runbooks/RhizomeTunnelDown.md

bad   RhizomeCanaryFailing (warning)
      seen     1 of 1 without an answer: n1 (last answer: never)
      do       Run `rhizome-agent doctor` on the client's node; if the node is gone for good, do nothing: its grant ends within the hour.
      runbook  docs/runbooks/RhizomeCanaryFailing.md

17 checks pass (--all shows them)
"""


def run(directory: Path, *words: str) -> int:
    return main(["doctor", "--runtime-dir", str(directory), "--seconds", "0.1", *words])


def patient(status: RoleStatus) -> cli.Patient:
    checks = SEED_SERVER if status.role == WELL.role else CLIENT
    return cli.Patient(status, examine(checks, Looks(status, status, 3.0, Process(1, 10, 60.0))))


def test_a_healthy_role_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Roles(tmp_path, {"rz-seed": WELL}):
        assert run(tmp_path) == Exit.OK
    assert capsys.readouterr().out == "rz-seed (seed-server of shoot--a): all 19 checks pass\n"


def test_what_fails_is_told_with_cause_next_step_and_runbook(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Roles(tmp_path, {"rz-seed": DOWN}):
        assert run(tmp_path) == Exit.FAILED
    out = capsys.readouterr().out
    assert out.splitlines()[0] == BROKEN.splitlines()[0]
    assert cli.render(patient(DOWN)) == BROKEN


def test_all_shows_what_is_well_too() -> None:
    lines = cli.render(patient(WELL), show_all=True).splitlines()
    assert len([line for line in lines if line.startswith("ok    Rhizome")]) == len(SEED_SERVER)
    assert "ok    RhizomeTunnelDown: UP for 1m00s: the shoot is reached" in lines


def test_what_is_worth_a_look_is_shown_and_does_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = replace(WELL, counters=Counters(failovers=(("silent", 2),)))
    with Roles(tmp_path, {"rz-seed": lost}):
        assert run(tmp_path) == Exit.OK
    out = capsys.readouterr().out
    assert out.startswith("rz-seed (seed-server of shoot--a): all 19 checks pass; worth a look: RhizomeFailover\n")
    assert "\nwarn  RhizomeFailover (info)\n" in out and "\n18 checks pass" in out


def test_what_changes_between_the_looks_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = {"rz-seed": WELL}

    def refuse(seconds: float) -> None:
        statuses["rz-seed"] = replace(WELL, counters=Counters(refused=(("outside", 1),)))

    monkeypatch.setattr("agent.cli.doctor._wait", refuse)
    with Roles(tmp_path, statuses):
        assert run(tmp_path) == Exit.FAILED
    assert "prefixes refused: outside 1 within" in capsys.readouterr().out


def test_file_descriptors_are_those_of_the_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon of this test is its own process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(0) for _ in range(100)]
    try:
        with Roles(tmp_path, {"rz-seed": WELL}):
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 12, hard))
            assert run(tmp_path) == Exit.FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    assert "1 of 19 checks fail: RhizomeDescriptorsHigh" in capsys.readouterr().out


def test_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Roles(tmp_path, {"rz-seed": DOWN}):
        assert run(tmp_path, "-o", "json") == Exit.FAILED
    (role,) = json.loads(capsys.readouterr().out)
    assert (role["role"], role["control_plane"], role["ifname"], role["outcome"]) == (
        "seed-server",
        "shoot--a",
        "rz-seed",
        "bad",
    )
    assert [finding["id"] for finding in role["findings"]] == [check.id for check in SEED_SERVER]
    first = role["findings"][0]
    assert first["outcome"] == "bad" and first["severity"] == "critical" and first["next"] == SEED_SERVER[0].next
    assert (
        first["seen"] == "DOWN for 12s: no client is connected"
        and first["runbook"] == "docs/runbooks/RhizomeTunnelDown.md"
    )


def test_the_worst_role_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node_down = replace(NODE, verdict=Verdict.DOWN)
    with Roles(tmp_path, {"a": WELL, "b": node_down}):
        assert run(tmp_path) == Exit.FAILED
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rz-")]
    assert [head.split(":")[0] for head in heads] == [
        "rz-shoot (shoot-client of shoot--a)",
        "rz-seed (seed-server of shoot--a)",
    ]


def test_a_dead_daemon_cannot_be_examined_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "rz-old.status"))
    assert run(tmp_path) == Exit.FAILED
    assert capsys.readouterr().out.startswith("rz-old (daemon): cannot be examined: the daemon is not running")


def test_a_daemon_that_dies_between_the_looks_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rz-seed.status"
    monkeypatch.setattr("agent.cli.doctor._wait", lambda seconds: path.unlink())
    with Roles(tmp_path, {"rz-seed": WELL}):
        assert run(tmp_path) == Exit.FAILED
    assert "cannot be examined: the daemon is not running" in capsys.readouterr().out


def test_no_daemon_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "nowhere") == Exit.FAILED
    assert "no Rhizome daemon has its socket in" in capsys.readouterr().err


def test_what_comes_from_the_other_side_cannot_talk_to_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\r\n\x9b31m"
    status = replace(DOWN, sentence=evil, causes=(evil, evil), peers=(PeerHealth(evil, path=evil),), ifname=evil)
    assert all(line.isprintable() for line in cli.render(patient(status), show_all=True).splitlines())
    assert all(line.isprintable() for line in cli.render(cli.Patient(status)).splitlines())


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9", "soon"])
def test_seconds_that_cannot_be_waited_for(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--seconds", seconds]) == Exit.USAGE
    assert "is no number of seconds from 0.1 to 3600" in capsys.readouterr().err


def test_colours_and_progress_are_for_terminals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Roles(tmp_path, {"rz-seed": DOWN}):
        run(tmp_path)
        plain = capsys.readouterr()
        assert "\x1b" not in plain.out and not plain.err
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        run(tmp_path)
        shown = capsys.readouterr()
        assert "\x1b[1;31mbad\x1b[0m   RhizomeTunnelDown" in shown.out and "watching for 0.1 s" in shown.err
        monkeypatch.setenv("NO_COLOR", "1")
        run(tmp_path)
        assert "\x1b" not in capsys.readouterr().out
