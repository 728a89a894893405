"""The command line of a daemon: what argparse adds to the table, and how it fails."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

import seed_server.settings
import shoot_client.settings
from agent.cli.flags import load, make_parser, wrap
from agent.errors import ConfigError
from agent.exits import Exit
from agent.kinds import HostPort
from agent.settings import BaseSettings, specs

Client = shoot_client.settings.Settings
ROLES: list[type[BaseSettings]] = [seed_server.settings.Settings, Client]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The least that a client needs."""
    for name in ("ca", "crt", "key"):
        (tmp_path / name).write_text("PEM")
    files = [f"--tls-{what}={tmp_path / name}" for what, name in (("ca", "ca"), ("certificate", "crt"), ("key", "key"))]
    return ["--control-plane", "a", "--server", "vpn.example:1", *files]


def problems(words: list[str], env: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(Client, words, env or {})
    return caught.value.problems


def test_flags_of_every_shape(words: list[str]) -> None:
    words += ["--proxies", "a:1", "--proxies=http://b:2,c:3", "--no-masquerade", "--mtu-bytes=1300", "--health-listen="]
    words += ["--proxy-headers", "A: 1, 2", "--proxy-from-environment"]
    settings = load(Client, words, {}).settings
    assert settings.proxies == (("a", 1), ("b", 2), ("c", 3))
    assert settings.proxy_headers == (("A", "1, 2"),)
    assert (settings.masquerade, settings.proxy_from_environment) == (False, True)
    assert (settings.mtu_bytes, settings.health_listen) == (1300, None)


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--masquerade"], True),
        (["--masquerade=false"], False),
        (["--masquerade", "false"], False),
        (["--no-masquerade"], False),
        (["--no-masquerade", "--masquerade"], True),
    ],
)
def test_switches(words: list[str], flags: list[str], value: bool) -> None:
    assert load(Client, words + flags, {"RHIZOME_MASQUERADE": str(not value).lower()}).settings.masquerade is value


def test_the_file_is_named_by_flag_or_variable(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("mtu_bytes = 1301")
    (tmp_path / "two.toml").write_text("mtu_bytes = 1302")
    env = {"RHIZOME_CONFIG": str(tmp_path / "one.toml")}
    assert load(Client, words, env).settings.mtu_bytes == 1301
    resolved = load(Client, [*words, "--config", str(tmp_path / "two.toml")], env)
    assert (resolved.settings.mtu_bytes, resolved.sources["mtu_bytes"]) == (1302, f"file {tmp_path / 'two.toml'}")


@pytest.mark.parametrize(
    ("content", "words_of_problem"),
    [
        (b"mtu_bytes = ", "not TOML: Invalid value"),
        (b"\xff", "not UTF-8"),
        (b"a = 1\na = 2", "not TOML: Cannot overwrite"),
    ],
)
def test_a_file_that_is_no_toml(words: list[str], tmp_path: Path, content: bytes, words_of_problem: str) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    (problem,) = problems([*words, "--config", str(tmp_path / "x.toml")])
    assert problem.startswith(f"config: {tmp_path / 'x.toml'}: {words_of_problem}")


def test_all_problems_of_flags_files_and_values_come_together(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "key").unlink()
    more = ["--frob", "1", "--mtu-byte=1", "stray", "--config", "/nonexistent.toml", "--wireguard-port", "0"]
    assert problems(words + more, {"RHIZOME_X": "1"}) == (
        "'--frob': flag: no such setting",
        "'--mtu-byte': flag: no such setting; did you mean --mtu-bytes?",
        "'stray': not expected here; see `rhizome-shoot-client --help`",
        "config: /nonexistent.toml: No such file or directory",
        'wireguard_port: flag --wireguard-port="0": not in 1..65535',
        "RHIZOME_X: env: no such setting",
        f"tls_key: flag --tls-key: {tmp_path / 'key'}: No such file or directory",
    )


def test_a_directory_is_no_file(words: list[str], tmp_path: Path) -> None:
    assert problems([*words, "--tls-ca", str(tmp_path)])[0] == "tls_ca: flag --tls-ca: given 2 times, wants one value"
    assert problems([*words[:-3], f"--tls-ca={tmp_path}", *words[-2:]]) == (
        f"tls_ca: flag --tls-ca: {tmp_path}: Is a directory",
    )


def test_abbreviations_are_no_flags(words: list[str]) -> None:
    assert problems([*words, "--mtu=1300"]) == ("'--mtu': flag: no such setting",)


@pytest.mark.parametrize("secret", ["-----BEGIN PRIVATE KEY-----\nhunter2", "--key=" + "A" * 43 + "="])
def test_a_secret_on_the_command_line_is_not_repeated(words: list[str], secret: str) -> None:
    said = "\n".join(problems([*words, "--mtu-bytes", "1300", secret]))
    assert "hunter2" not in said and "AAAA" not in said and said


def test_a_flag_without_its_value_is_said_in_words(words: list[str]) -> None:
    (problem,) = problems([*words, "--mtu-bytes"])
    assert problem == "argument --mtu-bytes: expected one argument; see `rhizome-shoot-client --help`"


def test_print_config_is_a_file_that_gives_the_same(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        load(Client, [*words, "--print-config", "--proxies", "a:1"], {"RHIZOME_LOG_LEVEL": "debug"})
    printed = capsys.readouterr().out
    assert 'log_level = "debug"  # env RHIZOME_LOG_LEVEL\n' in printed
    assert tomllib.loads(printed)["proxies"] == ["a:1"]
    (tmp_path / "printed.toml").write_text(printed)
    again = load(Client, ["--config", str(tmp_path / "printed.toml")], {})
    assert again.settings == load(Client, [*words, "--proxies=a:1", "--log-level=debug"], {}).settings


def test_print_config_of_what_cannot_work_lists_the_problems(words: list[str]) -> None:
    assert problems([*words, "--print-config", "--mtu-bytes=1"])


@pytest.mark.parametrize("role", ROLES)
def test_help_says_all_there_is_to_say(role: type[BaseSettings], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        load(role, ["--help"], {})
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    assert role.ABOUT in flat
    for spec in specs(role):
        assert f"{spec.flag} " in flat or f"{spec.flag}\n" in shown
        assert f"env {spec.env})" in flat
        assert " ".join(spec.help.split()) in flat
    for code in Exit:
        assert re.search(rf"^ +{code.value}  {re.escape(code.meaning)}$", shown, re.MULTILINE)
    for example in role.EXAMPLES:
        assert wrap(example) in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        load(Client, ["--version"], {})
    assert re.fullmatch(r"rhizome-shoot-client \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("role", ROLES)
def test_every_setting_has_its_flag(role: type[BaseSettings]) -> None:
    options = make_parser(role)._option_string_actions
    assert {spec.flag for spec in specs(role)} <= set(options)


@pytest.mark.parametrize("example", [example for role in ROLES for example in role.EXAMPLES])
def test_long_commands_are_wrapped_as_a_shell_takes_them(example: str) -> None:
    script = f"set -- {wrap(example)}\nprintf '%s\\n' \"$@\""
    words = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout.splitlines()
    assert words == shlex.split(example)
    assert max(map(len, wrap(example).splitlines())) <= 100


def test_addresses_of_ipv6(words: list[str]) -> None:
    assert load(Client, [*words, "--health-listen", "[::1]:80"], {}).settings.health_listen == HostPort("::1", 80)
