"""Settings as a whole: for every role, whatever the sources say, there is one answer and it survives a round trip."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seed_server.settings
import shoot_client.settings
from agent.errors import ConfigError
from agent.kinds import HostPort
from agent.settings import BaseSettings, File, Spec, print_config, resolve, specs

ROLES: list[type[BaseSettings]] = [seed_server.settings.Settings, shoot_client.settings.Settings]
MINIMAL = {
    "control_plane": "a", "tls_ca": "ca", "tls_certificate": "c", "tls_key": "k",
    "node_networks": "10.250.0.0/16", "server": "vpn.example:1",
}  # fmt: skip

#: Accepted texts by the name of the setting or of the kind; kinds that are not here have their example.
TEXTS: dict[str, list[str]] = {
    "CIDR": ["10.1.0.0/16", "2001:db8::/64", "10.2.0.0/16"],
    "ADDRESS": ["10.250.0.7", "2001:db8::7"],
    "ADDRESS:PORT": ["[::1]:0", "127.0.0.1:9"],
    "true|false": ["true", "false"],
    "'NAME: VALUE'": ["A: 1, 2", 'B: "3"'],
    "BYTES": ["1280", "9000"],
    "SECONDS": ["10", "60"],
    "once_silence_s": ["240", "7200"],
}


def minimal(role: type[BaseSettings]) -> dict[str, str]:
    names = {spec.name for spec in specs(role)}
    return {name: text for name, text in MINIMAL.items() if name in names}


@st.composite
def sources(draw: st.DrawFn, role: type[BaseSettings]) -> tuple[dict[str, list[str]], dict[str, str], dict[str, Any]]:
    """Flags, environment and file, each with some of the settings."""
    flags: dict[str, list[str]] = {}
    env: dict[str, str] = {}
    file: dict[str, Any] = {}
    for spec in specs(role):
        if spec.name in MINIMAL:
            continue
        accepted = TEXTS.get(spec.name) or TEXTS.get(spec.kind.name, [spec.kind.example])
        texts = st.sampled_from([*accepted, ""] if spec.optional else accepted)
        many = st.lists(texts, min_size=1, max_size=2) if spec.many else texts.map(lambda text: [text])
        if draw(st.booleans()):
            flags[spec.name] = draw(many)
        if draw(st.booleans()):
            env[spec.env] = spec.kind.separator.join(draw(many))
        if draw(st.booleans()):
            values = [spec.kind.show(spec.kind.parse(text)) if text else "" for text in draw(many)]
            file[spec.name] = values if spec.many else values[0]
    return flags, env, file


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_precedence_and_round_trip(role: type[BaseSettings], data: st.DataObject) -> None:
    flags, env, file = data.draw(sources(role))
    problems: tuple[str, ...] = ()
    try:
        resolved = resolve(role, {**minimal(role), **flags}, env, File("f", file))
    except ConfigError as exc:
        problems = exc.problems
    if problems:
        # The texts are fine one by one, so only rules between settings can be broken, and they name what they are about.
        names = {spec.name for spec in specs(role)}
        assert all(set(problem.partition(": ")[0].split(", ")) <= names for problem in problems)
        return
    for spec in specs(role):
        wanted = (
            "flag" if spec.name in {**minimal(role), **flags} else "env" if spec.env in env else "file" if spec.name in file else "default"
        )  # fmt: skip
        assert resolved.sources[spec.name].split()[0] == wanted
    printed = tomllib.loads(print_config(resolved))
    assert resolve(role, {}, {}, File("printed", printed)).settings == resolved.settings


TOML = st.recursive(
    st.booleans() | st.integers(-5, 10**6) | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_file_and_environment_is_settings_or_a_list_of_problems(
    role: type[BaseSettings], data: st.DataObject
) -> None:
    names = st.sampled_from([spec.name for spec in specs(role)]) | st.text(max_size=6)
    file = data.draw(st.dictionaries(names, TOML, max_size=6))
    env = data.draw(st.dictionaries(names.map(lambda name: "RHIZOME_" + name.upper()), st.text(max_size=8), max_size=4))
    problems: tuple[str, ...] = ("",)
    try:
        assert resolve(role, minimal(role), env, File("f", file)).settings
    except ConfigError as exc:
        problems = exc.problems
    assert problems == ("",) or all(problems)


def table() -> list[tuple[type[BaseSettings], Spec[Any]]]:
    return [(role, spec) for role in ROLES for spec in specs(role)]


@pytest.mark.parametrize(("role", "spec"), table(), ids=lambda item: getattr(item, "name", ""))
def test_the_habits_of_the_table(role: type[BaseSettings], spec: Spec[Any]) -> None:
    """Units are in the names, every setting has its help, defaults are values that the kind accepts."""
    assert spec.name.endswith("_s") == (spec.unit == "seconds")
    assert spec.name.endswith("_bytes") == (spec.unit == "bytes")
    assert spec.help and not spec.help.endswith(".")
    assert spec.group in role.GROUPS
    assert spec.optional or spec.default is not None
    assert spec.many == isinstance(spec.default, tuple) or isinstance(spec.default, HostPort)
    assert not spec.optional or "; empty: " in spec.help
    shown = spec.show(spec.default) if repr(spec.default) != "REQUIRED" else None
    for item in shown if isinstance(shown, list) else [shown]:
        if item is not None:
            assert spec.kind.show(spec.kind.parse(str(item).lower() if isinstance(item, bool) else str(item))) == item


@pytest.mark.parametrize("role", ROLES)
def test_secrets_are_only_paths(role: type[BaseSettings]) -> None:
    for spec in specs(role):
        if not spec.unit and any(word in spec.name for word in ("key", "password", "secret", "credentials", "token")):
            assert spec.secret and spec.file, spec.name
    assert len({field.name for field in fields(role)}) == len(specs(role))
