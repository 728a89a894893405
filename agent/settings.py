"""Settings: one frozen dataclass per role whose field table is the only place that says what can be set.

From the table come the flag `--wireguard-port`, the variable `RHIZOME_WIREGUARD_PORT`, the TOML key `wireguard_port`,
`--help`, `--print-config` and docs/configuration.md. A flag wins over the environment, that over the file, that over
the default. `resolve` is pure and reports every problem at once; a secret is only ever named by the path of its file.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from agent.errors import ConfigError
from agent.kinds import SECRET_PATH, Hidden, Kind, looks_secret

T = TypeVar("T")
S = TypeVar("S", bound="BaseSettings")

ENV_PREFIX = "RHIZOME_"
#: The file itself is named by this variable or by --config; it is no setting.
ENV_FILE = "RHIZOME_CONFIG"
_SHOWN_MAX = 60


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


@dataclass(frozen=True, slots=True)
class Spec(Generic[T]):
    """One row of the table. `default` is REQUIRED, None (off, or found out at run time, as `help` says) or a value.

    `unit` is empty for a setting without one. `optional`: an empty text means None. `file`: the value names a file that
    must be readable at start.
    """

    kind: Kind[T]
    help: str
    group: str
    default: Any
    unit: str = ""
    many: bool = False
    optional: bool = False
    file: bool = False
    name: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def secret(self) -> bool:
        return cast("Any", self.kind) is SECRET_PATH

    def show(self, value: Any) -> Any:
        """The value as TOML would have it: str, int, float, bool, a list of them, or None."""
        if value is None:
            return None
        return [self.kind.show(item) for item in value] if self.many else self.kind.show(value)


def setting(
    kind: Kind[T],
    help: str,
    *,
    group: str,
    default: T | None = REQUIRED,
    unit: str = "",
    optional: bool = False,
    file: bool = False,
) -> T:
    """A field with one value. Without a default it has to be given. With the default None it is optional."""
    return cast("T", _field(Spec(kind, help, group, default, unit, False, optional or default is None, file)))


def settings(kind: Kind[T], help: str, *, group: str, default: tuple[T, ...] = ()) -> tuple[T, ...]:
    """A field with any number of values: a repeatable flag, a list in one variable, a TOML array."""
    return cast("tuple[T, ...]", _field(Spec(kind, help, group, default, many=True)))


def _field(spec: Spec[Any]) -> Any:
    default = dataclasses.MISSING if spec.default is REQUIRED else spec.default
    return dataclasses.field(default=default, metadata={"spec": spec})


@dataclass(frozen=True, slots=True)
class Rule:
    """A broken rule between settings. `names` are the settings it is about, `text` says what does not fit and what to do."""

    names: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSettings:
    """Base of the settings of a role."""

    PROGRAM: ClassVar[str]
    ABOUT: ClassVar[str]
    GROUPS: ClassVar[tuple[str, ...]]
    EXAMPLES: ClassVar[tuple[str, ...]] = ()

    def check(self) -> Iterator[Rule]:
        """The rules between settings that this value breaks."""
        return iter(())


@dataclass(frozen=True, slots=True)
class Resolved(Generic[S]):
    """The settings and, per field, where the value came from: `flag --x`, `env RHIZOME_X`, `file NAME` or `default`."""

    settings: S
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class File:
    """A TOML file that was read: its name and its top-level table."""

    name: str
    table: Mapping[str, Any]


def specs(cls: type[BaseSettings]) -> tuple[Spec[Any], ...]:
    """The table of a role, in the order in which people should read it: by group, then as declared."""
    rows = [dataclasses.replace(field.metadata["spec"], name=field.name) for field in dataclasses.fields(cls)]
    return tuple(sorted(rows, key=lambda row: cls.GROUPS.index(row.group)))


def resolve(
    cls: type[S],
    flags: Mapping[str, str | Sequence[str]],
    env: Mapping[str, str],
    file: File | None = None,
    unreadable: Callable[[Path], str] = lambda path: "",
) -> Resolved[S]:
    """The settings of a role from its sources. `flags` has field names as keys and unparsed text as values.

    `unreadable` says why a file that has to be there cannot be read ("" when it can). Raises ConfigError with every
    problem: unparsable values, missing settings, unknown keys and variables, broken rules.
    """
    table = specs(cls)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    bad: set[str] = set()
    for spec in table:
        try:
            values[spec.name], sources[spec.name] = _value(spec, flags, env, file)
        except ConfigError as exc:
            problems += exc.problems
            bad.add(spec.name)
            values[spec.name] = _stand_in(spec)
    problems += _unknown(table, env, file)
    for spec in table:
        value = values[spec.name]
        if spec.file and spec.name not in bad and value is not None and (why := unreadable(value)):
            problems.append(f"{spec.name}: {sources[spec.name]}: {value}: {why}")
    resolved = cls(**values)
    # A rule about a setting that is wrong by itself has nothing to say yet.
    problems += [f"{', '.join(rule.names)}: {rule.text}" for rule in resolved.check() if not bad & set(rule.names)]
    if problems:
        raise ConfigError(*problems)
    return Resolved(resolved, sources)


def _value(
    spec: Spec[Any], flags: Mapping[str, str | Sequence[str]], env: Mapping[str, str], file: File | None
) -> tuple[Any, str]:
    if spec.name in flags:
        given = flags[spec.name]
        texts = [given] if isinstance(given, str) else list(given)
        return _parse(spec, texts, f"flag {spec.flag}"), f"flag {spec.flag}"
    if spec.env in env and not _service_link(spec.env, env[spec.env]):
        return _parse(spec, [env[spec.env]], f"env {spec.env}"), f"env {spec.env}"
    if file is not None and spec.name in file.table:
        source = f"file {file.name}"
        return _parse(spec, _toml_texts(spec, file.table[spec.name], source), source, split=False), source
    if spec.default is REQUIRED:
        raise ConfigError(
            f"{spec.name}: required: give {spec.flag}, {spec.env} or `{spec.name}` in the file ({spec.help})"
        )
    return spec.default, "default"


def _parse(spec: Spec[Any], texts: Sequence[Any], source: str, *, split: bool = True) -> Any:
    """Raises ConfigError with one problem per bad item. An item that is a ConfigError already is raised as such."""
    if spec.many:
        items = list(texts)
        if split:
            items = [part.strip() for text in texts for part in text.split(spec.kind.separator) if part.strip()]
        values: list[Any] = []
        problems: list[str] = []
        for item in items:
            try:
                values.append(_one(spec, item, source))
            except ConfigError as exc:
                problems += exc.problems
        if problems:
            raise ConfigError(*problems)
        return tuple(dict.fromkeys(values))
    if len(texts) > 1:
        raise ConfigError(f"{spec.name}: {source}: given {len(texts)} times, wants one value")
    if not texts[0] and spec.optional:
        return None
    return _one(spec, texts[0], source)


def _one(spec: Spec[Any], text: str | ConfigError, source: str) -> Any:
    if isinstance(text, ConfigError):
        raise text
    try:
        if not text:
            raise ValueError("is empty")
        if looks_secret(text):
            raise Hidden("looks like a secret, which belongs into a file (it is not shown here)")
        return spec.kind.parse(text)
    except Hidden as exc:
        raise ConfigError(f"{spec.name}: {source}: {exc}") from None
    except ValueError as exc:
        shown = text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."
        raise ConfigError(f"{spec.name}: {source}={quoted(shown)}: {exc}") from None


def _toml_texts(spec: Spec[Any], value: Any, source: str) -> list[str | ConfigError]:
    """A TOML value's items as text, or the problem with their type. Never repeats the value."""
    if spec.many != isinstance(value, list):
        wanted = f"an array of {spec.kind.name}" if spec.many else f"one {spec.kind.name}, not an array"
        raise ConfigError(f"{spec.name}: {source}: must be {wanted}")
    texts: list[str | ConfigError] = []
    for item in value if spec.many else [value]:
        if item == "" and spec.optional:
            texts.append("")
        elif type(item) not in spec.kind.toml:
            wanted = " or ".join(_TOML_TYPES[kind] for kind in spec.kind.toml)
            got = _TOML_TYPES.get(type(item), "that")
            texts.append(ConfigError(f"{spec.name}: {source}: must be {wanted}, not {got}"))
        else:
            texts.append(str(item).lower() if isinstance(item, bool) else str(item))
    return texts


_TOML_TYPES: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "an array",
}


def _stand_in(spec: Spec[Any]) -> Any:
    if spec.default is not REQUIRED:
        return spec.default
    return spec.kind.parse(spec.kind.example)


def _unknown(table: Sequence[Spec[Any]], env: Mapping[str, str], file: File | None) -> list[str]:
    """Problems for keys and variables that no setting has. Their values are not repeated: who knows what they are."""
    problems: list[str] = []
    if file is not None:
        names = [spec.name for spec in table]
        problems += [
            f"{quoted(key)}: file {file.name}: no such setting{nearest(key.lower(), names)}"
            for key in file.table
            if key not in names
        ]
    variables = {spec.env.removeprefix(ENV_PREFIX): spec.env for spec in table}
    for key, value in sorted(env.items()):
        if key.startswith(ENV_PREFIX) and key not in (*variables.values(), ENV_FILE) and not _service_link(key, value):
            meant = nearest(key.removeprefix(ENV_PREFIX).upper(), variables, variables.__getitem__)
            problems.append(f"{key}: env: no such setting{meant}")
    return problems


def nearest(word: str, words: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """`; did you mean X?` for the nearest of `words`, spelt by `spell`, or nothing."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)
    return f"; did you mean {spell(found[0])}?" if found else ""


_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")


def _service_link(key: str, value: str) -> bool:
    """Kubernetes tells every pod about the services of its namespace; a service `rhizome-...` looks like our prefix.

    See "Discovering services, environment variables" of the Kubernetes documentation.
    """
    is_url = key.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", value) is not None
    return is_url or _SERVICE_LINK.search(key) is not None


def print_config(resolved: Resolved[Any]) -> str:
    """The configuration as TOML that gives the same values again; every line says where its value came from."""
    lines: list[str] = []
    group = ""
    for spec in specs(type(resolved.settings)):
        if spec.group != group:
            group = spec.group
            lines += [""] * bool(lines) + [f"# {group}"]
        shown = toml_value(spec.show(getattr(resolved.settings, spec.name)))
        lines.append(f"{spec.name} = {shown}  # {resolved.sources[spec.name]}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML 1.0 text; None is the empty string, which every setting that may be None reads as None."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    return quoted(value)


def quoted(text: str) -> str:
    """A TOML basic string (and, for printable text, what people expect between quotes)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
