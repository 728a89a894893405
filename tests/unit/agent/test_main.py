"""`rhizome-agent`: the list of sub-commands, their examples, and what each may import."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from agent.__main__ import COMMANDS, PROGRAM, dispatch, main
from agent.exits import Exit

EXAMPLES = [example for command in COMMANDS.values() for example in command.examples]
DAEMONS = {"sidecar"}  # their examples are those of their settings: see tests/unit/test_examples.py


def test_help_lists_every_command_example_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        dispatch(["--help"])
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", out, re.MULTILINE)
    for example in EXAMPLES:
        assert f"\n  {example}\n" in out
    for code in Exit:
        assert re.search(rf"^ +{code.value}  {re.escape(code.meaning)}$", out, re.MULTILINE)


def test_no_words_are_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        dispatch([])
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        dispatch([name, "--help"])
    out = capsys.readouterr().out
    assert COMMANDS[name].about in out
    for example in COMMANDS[name].examples:
        assert example in out


def test_the_examples_run_in_the_order_in_which_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is understood: it does its work, or fails for a reason of this host, never because of how it is written.

    `cleanup` is only parsed: a test must not remove the tunnel of the machine that it runs on.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agent.cli.cleanup.run", lambda arguments: Exit.OK)
    for example in EXAMPLES:
        program, *words = shlex.split(example)
        assert program == PROGRAM
        if words[0] in DAEMONS:
            continue
        code = main(words)
        err = capsys.readouterr().err
        assert code in (Exit.OK, Exit.FAILED, Exit.UNSUPPORTED), f"{example}: {err}"
        assert code == Exit.OK or words[0] != "pki", f"{example}: {err}"
    assert (tmp_path / "pki" / "client-node-1.crt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stat"], "no sub-command 'stat'; did you mean status?; see `rhizome-agent --help`"),
        (["xyz"], "no sub-command 'xyz'; see `rhizome-agent --help`"),
        (["--frob"], "--frob"),
        (["status", "--frob"], "see `rhizome-agent status --help`"),
        (["wgconf", "a/b"], "IFNAME: an interface name has"),
    ],
)
def test_what_means_nothing_is_said_in_words(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == Exit.USAGE
    assert message in capsys.readouterr().err


def imported(*modules: str) -> set[str]:
    """Top-level packages that a fresh interpreter has after importing the modules."""
    script = f"import sys, {', '.join(modules)}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


HEAVY = {"aiohttp", "cryptography", "pyroute2", "prometheus_client", "lightkube", "httpx2", "wgconfig"}
LIGHT = [
    "agent.__main__",
    "agent.cli.doctor",
    "agent.cli.flags",
    "agent.cli.pki",
    "agent.cli.sidecar",
    "agent.cli.status",
    "agent.cli.wgconf",
    "agent.logs",
    "agent.observability",
    "agent.sidecar.settings",
    "agent.wgconf",
    "seed_server.settings",
    "shoot_client.settings",
]


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    assert not imported(*LIGHT) & HEAVY


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("agent.pki", "cryptography"), ("agent.metrics", "prometheus_client"), ("agent.webserver", "aiohttp")],
)
def test_a_heavy_library_has_a_module_of_its_own(module: str, heavy: str) -> None:
    assert imported(module) & HEAVY == {heavy}
