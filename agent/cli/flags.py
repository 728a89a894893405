"""From a settings table to a command line: flags, `--help`, `--print-config`, and the files behind them."""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from agent.errors import ConfigError
from agent.exits import Exit
from agent.kinds import BOOL, looks_secret
from agent.settings import (
    ENV_FILE,
    REQUIRED,
    BaseSettings,
    File,
    Resolved,
    Spec,
    nearest,
    print_config,
    resolve,
    specs,
    toml_value,
)

_PLAN = "With `plan` as the first word: show what would be changed on this host, and change nothing."
_LINE_MAX = 100

S = TypeVar("S", bound=BaseSettings)


class Parser(argparse.ArgumentParser):
    """argparse that raises its complaints as ConfigError, so that they look and exit like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def load(cls: type[S], argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> Resolved[S]:
    """The settings of a role from its command line, environment and file.

    `--help` and `--print-config` print and raise SystemExit(0). Raises ConfigError with every problem found.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    environment = os.environ if env is None else env
    parser = make_parser(cls)
    given, rest = parser.parse_known_args(arguments)
    flags = vars(given)
    config, printing = flags.pop("config", None), flags.pop("print_config", False)
    problems = _unknown_flags(parser, rest)
    file = None
    try:
        if path := config or environment.get(ENV_FILE):
            file = read_toml(Path(path))
    except ConfigError as exc:
        problems += exc.problems
    try:
        resolved = resolve(cls, flags, environment, file, unreadable)
    except ConfigError as exc:
        raise ConfigError(*problems, *exc.problems) from None
    if problems:
        raise ConfigError(*problems)
    if printing:
        sys.stdout.write(print_config(resolved))
        raise SystemExit(Exit.OK)
    return resolved


def make_parser(cls: type[BaseSettings]) -> Parser:
    """Every flag of the table; values stay text, and absent flags leave no trace."""
    parser = Parser(
        prog=cls.PROGRAM,
        usage=f"{cls.PROGRAM} [plan] [--config PATH] [SETTING ...]",
        description=f"{cls.ABOUT}\n{_PLAN}",
        epilog=epilog(cls.EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    general = parser.add_argument_group("General")
    general.add_argument("--help", "-h", action="help", help="show this and exit")
    general.add_argument("--config", metavar="PATH", help=f"TOML file with settings (env {ENV_FILE})")
    general.add_argument(
        "--print-config", action="store_true", help="show every setting, with where it came from, and exit"
    )
    general.add_argument(
        "--version", action="version", version=f"%(prog)s {version('rhizome')}", help="show it and exit"
    )
    groups: dict[str, Any] = {}
    for spec in specs(cls):
        group = groups.get(spec.group) or groups.setdefault(spec.group, parser.add_argument_group(spec.group))
        _add(group, spec)
    return parser


def _add(group: Any, spec: Spec[Any]) -> None:
    words = help_words(spec).replace("%", "%%")
    if spec.kind is BOOL:
        group.add_argument(spec.flag, nargs="?", const="true", metavar="true|false", help=words)
        group.add_argument(
            "--no-" + spec.flag.removeprefix("--"),
            dest=spec.name,
            action="store_const",
            const="false",
            help=argparse.SUPPRESS,
        )
    else:
        # Scalars are appended as well: two of them are a problem that resolve() words like the others.
        group.add_argument(spec.flag, action="append", metavar=spec.kind.name, help=words)


def help_words(spec: Spec[Any]) -> str:
    """One sentence and, in brackets, what `--help` has to say about the value."""
    facts = [f"in {spec.unit}"] if spec.unit else []
    facts += ["may be repeated"] if spec.many else []
    facts += [f"or --no-{spec.flag.removeprefix('--')}"] if spec.kind is BOOL else []
    facts += [f"default {words}"] if (words := default_words(spec)) else []
    facts += ["required"] if spec.default is REQUIRED else []
    return f"{spec.help} ({', '.join([*facts, f'env {spec.env}'])})"


def default_words(spec: Spec[Any]) -> str:
    """The default as one would type it, "" where there is none."""
    if spec.default is REQUIRED or spec.default is None:
        return ""
    shown = spec.show(spec.default)
    return ", ".join(toml_value(item).strip('"') for item in (shown if isinstance(shown, list) else [shown]))


def epilog(examples: Sequence[str]) -> str:
    """Examples to copy, and the exit codes."""
    lines = ["examples:", *(f"  {wrap(example)}" for example in examples), ""]
    lines += ["exit codes:", *(f"  {code.value:>3}  {code.meaning}" for code in Exit)]
    return "\n".join(lines)


def wrap(command: str) -> str:
    """A long command line as several, the way a shell accepts it."""
    if len(command) <= _LINE_MAX:
        return command
    return command.replace(" --", " \\\n    --")


def _unknown_flags(parser: Parser, rest: Sequence[str]) -> list[str]:
    """Problems for what no flag took. A word after an unknown flag is its value and goes with it."""
    problems: list[str] = []
    after_flag = False
    known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    for word in rest:
        if word.startswith("-"):
            flag, equals, _ = word.partition("=")
            problems.append(f"{_shown(flag)}: flag: no such setting{nearest(flag.lower(), known)}")
            after_flag = not equals
        elif not after_flag:
            problems.append(f"{_shown(word)}: not expected here; see `{parser.prog} --help`")
        else:
            after_flag = False
    return problems


def _shown(word: str) -> str:
    return "an argument (not shown here)" if looks_secret(word) else repr(word[:60])


def read_toml(path: Path) -> File:
    """Raises ConfigError when the file cannot be read or is not TOML."""
    try:
        return File(str(path), tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise ConfigError(f"config: {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"config: {path}: not UTF-8") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"config: {path}: not TOML: {exc}") from exc


def unreadable(path: Path) -> str:
    """Why a file cannot be read, "" when it can."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as exc:
        return exc.strerror or type(exc).__name__
    return ""
