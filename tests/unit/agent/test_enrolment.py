"""One-time tokens: how they are written, what a server's list says of them, and the command that makes both."""

import re
import stat
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest

from agent import onetime
from agent.__main__ import COMMANDS, PROGRAM
from agent.cli.program import Program
from agent.enrolment import Line, added, digest_of, find, made, parse, removed
from agent.errors import ConfigError, HostError
from agent.identity import Identity, Role
from agent.logs import redact

NODE = Identity("a", Role.SHOOT_CLIENT, "edge-1")
TOKEN = made(bytes(range(32)))
LINE = Line(digest_of(TOKEN), NODE, 1_700_000_000.0)


def test_a_token_has_its_256_bits_and_is_taken_once() -> None:
    assert onetime.is_one_time(TOKEN) and onetime.is_bare(TOKEN)
    assert urlsafe_b64decode(TOKEN.removeprefix(onetime.PREFIX) + "=") == bytes(range(32))
    ours = onetime.taken(TOKEN, b"\x01" * 16)
    assert onetime.parts(ours) == (TOKEN, "01" * 16) and not onetime.is_bare(ours)


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        TOKEN + ".",
        TOKEN + ".01",
        TOKEN[:-1] + "." + "0" * 32,
        TOKEN + "." + "0" * 33,
        TOKEN + "." + "Z" * 32,
        "",
    ],
)
def test_what_is_no_token_of_a_machine(text: str) -> None:
    assert onetime.parts(text) is None


def test_a_token_is_cut_out_of_texts() -> None:
    text = redact(f"curl -H x {onetime.taken(TOKEN, bytes(16))} and {TOKEN}, done")
    assert text == "curl -H x (hidden) and (hidden), done"


def test_a_list_is_read_as_it_is_written() -> None:
    text = added("# mine\n", LINE, "for ada\nspiffe://a/shoot-client/smuggled", 0.0)
    assert (
        text == f"# mine\n{digest_of(TOKEN)}  {NODE}  2023-11-14T22:13:20Z  for ada spiffe://a/shoot-client/smuggled\n"
    )
    assert parse(text) == (LINE,) and find(parse(text), TOKEN) == LINE
    assert find(parse(text), made(bytes(32))) is None
    assert removed(text, lambda line: line.identity == NODE) == "# mine\n"
    other = Line(digest_of("x"), NODE, 1_800_000_000.0)
    assert parse(added(text, other, "", 1_700_000_000.0)) == (other,), "one that has ended goes when another comes"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x", "not the SHA-256"),
        (f"{digest_of('x')} {NODE}", "not the SHA-256"),
        (f"{digest_of('x').upper()} {NODE} 2026-01-01T00:00:00Z", "not the SHA-256"),
        (f"{digest_of('x')} node-1 2026-01-01T00:00:00Z", "not a SPIFFE ID"),
        (f"{digest_of('x')} {NODE} tomorrow", "the time is not written"),
        (f"{digest_of('x')} spiffe://a/seed-server 2026-01-01T00:00:00Z", "is no shoot client"),
        (f"{digest_of('x')} spiffe://a/sidecar/x 2026-01-01T00:00:00Z", "is no shoot client"),
        (str(LINE), "stands there twice"),
    ],
)
def test_a_list_of_which_a_part_is_not_understood_is_none(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"line 2: .*{problem}"):
        parse(f"{LINE}\n{text}\n")


def command(*words: str) -> None:
    assert Program(PROGRAM, "", COMMANDS).dispatch(["enrol-token", *words]) == 0


def test_the_command_makes_a_token_that_stands_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens.txt"
    command("create", str(NODE), "--file", str(file), "--ttl", "30m", "--remark", "site 7")
    out, err = capsys.readouterr()
    token = out.strip()
    assert onetime.is_bare(token) and out == f"{token}\n" and token not in err
    (line,) = parse(file.read_text())
    assert line.digest == digest_of(token) and line.identity == NODE
    assert token not in file.read_text() and "site 7" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    command("create", str(NODE), "--file", str(file))
    assert capsys.readouterr().out.strip() != token

    command("list", "--file", str(file))
    shown = capsys.readouterr().out
    assert re.search(rf"^{line.id} +{NODE} +(30m00s|29m59s)$", shown, re.MULTILINE)

    command("remove", line.id, "--file", str(file))
    assert "nobody enrols with it" in capsys.readouterr().out and line not in parse(file.read_text())
    command("remove", line.id, "--file", str(file))
    assert "no such token" in capsys.readouterr().out
    command("remove", str(NODE), "--file", str(file))
    capsys.readouterr()
    command("list", "--file", str(file))
    assert capsys.readouterr().out == "no tokens\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("node-1",), "not a SPIFFE ID"),
        (("spiffe://a/sidecar/x",), "a sidecar has a certificate or its pod's token"),
        ((str(NODE), "--ttl", "8d"), "a time such as 30m, 1h or 2d"),
        ((str(NODE), "--ttl", "0s"), "a time such as 30m, 1h or 2d"),
        ((str(NODE), "--ttl", "1"), "a time such as 30m, 1h or 2d"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        command("create", *words, "--file", str(tmp_path / "tokens.txt"))
    assert not (tmp_path / "tokens.txt").exists()


def test_a_broken_list_is_not_made_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("mine\n")
    for words in (("create", str(NODE)), ("list",), ("remove", "x")):
        with pytest.raises(ConfigError, match="line 1"):
            command(*words, "--file", str(file))
    assert file.read_text() == "mine\n" and capsys.readouterr().out == "", "no token is shown that no server knows"
    with pytest.raises(HostError, match="cannot change"):
        command("create", str(NODE), "--file", str(tmp_path / "nowhere" / "tokens.txt"))
