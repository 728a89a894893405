"""Settings: precedence, every problem at once, no secret in any message, and nothing unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent.errors import ConfigError
from agent.kinds import BOOL, HEADER, PATH, PORT, SECRET_PATH, TEXT, number
from agent.settings import (
    BaseSettings,
    File,
    Resolved,
    Rule,
    nearest,
    print_config,
    resolve,
    setting,
    settings,
    specs,
    toml_value,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy(BaseSettings):
    PROGRAM: ClassVar[str] = "toy"
    ABOUT: ClassVar[str] = "A toy."
    GROUPS: ClassVar[tuple[str, ...]] = ("B", "A")

    name: str = setting(TEXT, "its name", group="A")
    listen_port: int = setting(PORT, "its port", group="B", default=51820)
    ports: tuple[int, ...] = settings(PORT, "more ports", group="B", default=(1, 2))
    headers: tuple[tuple[str, str], ...] = settings(HEADER, "headers", group="A")
    quick: bool = setting(BOOL, "hurry", group="A", default=False)
    key: Path | None = setting(SECRET_PATH, "a key", group="A", default=None, file=True)
    directory: Path = setting(PATH, "a place", group="A", default=Path("/tmp"))
    wait_s: float = setting(number(0, 9), "patience", group="B", default=1.0, unit="seconds")

    def check(self) -> Iterator[Rule]:
        if self.listen_port in self.ports:
            yield Rule(("listen_port", "ports"), f"{self.listen_port} is in both")
        if self.name == "bad":
            yield Rule(("name",), "bad is bad")


Flags = Mapping[str, str | Sequence[str]]


def get(
    flags: Flags | None = None, env: Mapping[str, str] | None = None, file: Mapping[str, Any] | None = None
) -> Resolved[Toy]:
    table = File("toy.toml", file) if file is not None else None
    return resolve(Toy, {"name": "n", **(flags or {})}, env or {}, table)


def problems(*args: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        get(*args)
    return caught.value.problems


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default() -> None:
    flags, env, file = {"listen_port": "4"}, {"RHIZOME_LISTEN_PORT": "3"}, {"listen_port": 5}
    for args, value, source in (
        ((flags, env, file), 4, "flag --listen-port"),
        (({}, env, file), 3, "env RHIZOME_LISTEN_PORT"),
        (({}, {}, file), 5, "file toy.toml"),
        (({}, {}, {}), 51820, "default"),
    ):
        resolved = get(*args)
        assert (resolved.settings.listen_port, resolved.sources["listen_port"]) == (value, source)


@pytest.mark.parametrize(
    ("flags", "env", "file", "ports"),
    [
        ({"ports": ["5", "6,7"]}, {"RHIZOME_PORTS": "8"}, {"ports": [9]}, (5, 6, 7)),
        ({}, {"RHIZOME_PORTS": " 8 , 9,"}, {"ports": [9]}, (8, 9)),
        ({}, {}, {"ports": [9, 10]}, (9, 10)),
        ({}, {}, {"ports": [9, 9]}, (9,)),
        ({}, {}, {}, (1, 2)),
        ({}, {"RHIZOME_PORTS": ""}, {}, ()),
        ({"ports": [""]}, {}, {}, ()),
        ({}, {}, {"ports": []}, ()),
    ],
)
def test_a_list_is_replaced_whole(
    flags: Flags, env: dict[str, str], file: dict[str, Any], ports: tuple[int, ...]
) -> None:
    assert get(flags, env, file).settings.ports == ports


def test_headers_are_one_per_line_because_they_may_hold_commas() -> None:
    assert get({}, {"RHIZOME_HEADERS": "A: 1, 2\nB: 3"}).settings.headers == (("A", "1, 2"), ("B", "3"))


@pytest.mark.parametrize(("args"), [({"key": ""},), ({}, {"RHIZOME_KEY": ""}), ({}, {}, {"key": ""})])
def test_empty_turns_an_optional_setting_off(args: tuple[Any, ...]) -> None:
    assert get(*args).settings.key is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (({}, {"RHIZOME_LISTEN_PORT": "70000"}), 'listen_port: env RHIZOME_LISTEN_PORT="70000": not in 1..65535'),
        (({"listen_port": "x"},), 'listen_port: flag --listen-port="x": not a whole number'),
        (({"listen_port": ["1", "2"]},), "listen_port: flag --listen-port: given 2 times, wants one value"),
        (({}, {}, {"listen_port": 0}), 'listen_port: file toy.toml="0": not in 1..65535'),
        (({}, {}, {"listen_port": "7"}), "listen_port: file toy.toml: must be an integer, not a string"),
        (({}, {}, {"listen_port": True}), "listen_port: file toy.toml: must be an integer, not true or false"),
        (({}, {}, {"listen_port": [7]}), "listen_port: file toy.toml: must be one PORT, not an array"),
        (({}, {}, {"ports": 7}), "ports: file toy.toml: must be an array of PORT"),
        (({}, {}, {"name": {}, "quick": 1}), "quick: file toy.toml: must be true or false, not an integer"),
        (({}, {"RHIZOME_QUICK": ""}), 'quick: env RHIZOME_QUICK="": is empty'),
        (({"name": "bad"},), "name: bad is bad"),
        (({"listen_port": "2"},), "listen_port, ports: 2 is in both"),
        (({}, {"RHIZOME_LISTEN_PROT": "1"}), "RHIZOME_LISTEN_PROT: env: no such setting; did you mean RHIZOME_LISTEN_PORT?"),
        (({}, {"RHIZOME_XYZ": "1"}), "RHIZOME_XYZ: env: no such setting"),
        (({}, {}, {"listen-port": 1}), '"listen-port": file toy.toml: no such setting; did you mean listen_port?'),
        (({}, {}, {"tls": {"key": "hunter2"}}), '"tls": file toy.toml: no such setting'),
    ],
)  # fmt: skip
def test_one_problem(args: tuple[Any, ...], expected: str) -> None:
    assert problems(*args) == (expected,)


def test_what_is_required_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Toy, {}, {})
    assert caught.value.problems == ("name: required: give --name, RHIZOME_NAME or `name` in the file (its name)",)


def test_all_problems_are_reported_at_once_and_no_more_than_there_are() -> None:
    """The rule about listen_port says nothing while the port itself is wrong; the one about the name does."""
    file = {"wait_s": "1", "prots": [], "ports": [2, 0, "x"]}
    assert problems({"name": "bad", "quick": "maybe"}, {"RHIZOME_LISTEN_PORT": "0", "RHIZOME_KEYS": "k"}, file) == (
        'listen_port: env RHIZOME_LISTEN_PORT="0": not in 1..65535',
        'ports: file toy.toml="0": not in 1..65535',
        "ports: file toy.toml: must be an integer, not a string",
        "wait_s: file toy.toml: must be an integer or a number, not a string",
        'quick: flag --quick="maybe": not true or false',
        '"prots": file toy.toml: no such setting; did you mean ports?',
        "RHIZOME_KEYS: env: no such setting; did you mean RHIZOME_KEY?",
        "name: bad is bad",
    )


def test_a_rule_says_nothing_about_what_is_wrong_already() -> None:
    assert problems({"listen_port": "0", "ports": ["51820"]}) == (
        'listen_port: flag --listen-port="0": not in 1..65535',
    )


def test_only_the_source_that_counts_is_looked_at() -> None:
    assert get({"listen_port": "4"}, {"RHIZOME_LISTEN_PORT": "nonsense"}).settings.listen_port == 4


def test_services_of_kubernetes_are_not_our_variables() -> None:
    """A service named rhizome-seed-server, and, worse, one named rhizome-listen."""
    env = {
        "RHIZOME_SEED_SERVER_SERVICE_HOST": "10.0.0.1",
        "RHIZOME_SEED_SERVER_SERVICE_PORT": "8443",
        "RHIZOME_SEED_SERVER_SERVICE_PORT_TLS": "8443",
        "RHIZOME_SEED_SERVER_PORT": "tcp://10.0.0.1:8443",
        "RHIZOME_SEED_SERVER_PORT_8443_TCP": "tcp://10.0.0.1:8443",
        "RHIZOME_SEED_SERVER_PORT_8443_TCP_PROTO": "tcp",
        "RHIZOME_SEED_SERVER_PORT_8443_TCP_PORT": "8443",
        "RHIZOME_SEED_SERVER_PORT_8443_TCP_ADDR": "10.0.0.1",
        "RHIZOME_LISTEN_PORT": "tcp://10.0.0.1:8443",
        "RHIZOME_CONFIG": "x",
        "HOME": "/",
    }
    assert get({}, env).settings == get().settings


PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQ"
WIREGUARD = "c2VjcmV0" * 5 + "abc="


@pytest.mark.parametrize("source", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("key", PEM),
        ("key", WIREGUARD),
        ("key", "user:hunter2"),
        ("listen_port", PEM),
        ("listen_port", WIREGUARD),
        ("directory", PEM),
        ("directory", WIREGUARD),
        ("headers", PEM),
        ("headers", WIREGUARD),
        ("headers", "Authorization: Bearer hunter2"),
    ],
)
def test_a_secret_is_never_repeated(name: str, secret: str, source: int) -> None:
    sources: list[dict[str, Any]] = [{}, {}, {}]
    sources[source] = (
        {f"RHIZOME_{name.upper()}": secret} if source == 1 else {name: [secret] if name == "headers" else secret}
    )
    said = "\n".join(problems(*sources))
    assert said.startswith(f"{name}: ")
    assert not [part for part in ("MC4CAQ", "c2VjcmV0", "hunter2") if part in said]


@pytest.mark.parametrize("secret", [PEM, WIREGUARD, "hunter2"])
def test_the_value_of_what_is_unknown_is_not_repeated_either(secret: str) -> None:
    assert problems({}, {"RHIZOME_TLS_KEY_PEM": secret}, {"password": secret}) == (
        '"password": file toy.toml: no such setting',
        "RHIZOME_TLS_KEY_PEM: env: no such setting",
    )


def test_a_file_that_cannot_be_read_is_a_problem_like_the_others() -> None:
    def unreadable(path: Path) -> str:
        return "no such file" if path == Path("k") else ""

    with pytest.raises(ConfigError) as caught:
        resolve(Toy, {"name": "n", "key": "k", "listen_port": "x"}, {}, None, unreadable)
    assert caught.value.problems[1:] == ("key: flag --key: k: no such file",)
    assert resolve(Toy, {"name": "n", "key": "good"}, {}, None, unreadable).settings.key == Path("good")


def test_the_table_is_in_reading_order() -> None:
    assert [spec.name for spec in specs(Toy)] == [
        "listen_port", "ports", "wait_s", "name", "headers", "quick", "key", "directory",
    ]  # fmt: skip


def test_print_config_says_where_every_value_comes_from() -> None:
    resolved = get({"headers": ["A: 1, 2"]}, {"RHIZOME_QUICK": "true"}, {"ports": [7]})
    assert print_config(resolved) == (
        "# B\n"
        "listen_port = 51820  # default\n"
        "ports = [7]  # file toy.toml\n"
        "wait_s = 1  # default\n"
        "\n"
        "# A\n"
        'name = "n"  # flag --name\n'
        'headers = ["A: 1, 2"]  # flag --headers\n'
        "quick = true  # env RHIZOME_QUICK\n"
        'key = ""  # default\n'
        'directory = "/tmp"  # default\n'
    )


def test_nearest() -> None:
    assert nearest("listen_prot", ["listen_port", "name"]) == "; did you mean listen_port?"
    assert nearest("zzz", ["listen_port", "name"]) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(None, '""'), (True, "true"), (1, "1"), (2.0, "2"), (0.5, "0.5"), (["a", 1], '["a", 1]'), ('"\\\n', '"\\"\\\\\\U0000000a"')]
)  # fmt: skip
def test_toml_values(value: Any, text: str) -> None:
    assert toml_value(value) == text
