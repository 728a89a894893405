"""A program of sub-commands: each is a module with `arguments(parser)` and `run(arguments) -> int`, imported when it is used.

A module that has `run_words(words) -> int` instead reads its command line by itself: it is a role with settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from agent.cli.flags import Parser, epilog
from agent.errors import ConfigError
from agent.settings import nearest


@dataclass(frozen=True, slots=True)
class Command:
    """`module` is imported when the command is used. `examples` can be copied; a test runs their command lines."""

    module: str
    about: str
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """What people type first, and the commands that may follow."""

    name: str
    about: str
    commands: Mapping[str, Command]

    def dispatch(self, words: Sequence[str]) -> int:
        """Raises ConfigError for a command line that means nothing, SystemExit after --help."""
        parser = self._parser()
        if not words or words[0].startswith("-"):
            parser.parse_args(words or ["--help"])
        name, rest = words[0], words[1:]
        command = self.commands.get(name)
        if command is None:
            raise ConfigError(f"no sub-command {name[:32]!r}{nearest(name, self.commands)}; see `{self.name} --help`")
        module = import_module(command.module)
        if hasattr(module, "run_words"):
            return int(module.run_words(rest))
        own = Parser(
            prog=f"{self.name} {name}",
            description=command.about,
            epilog=epilog(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.arguments(own)
        return int(module.run(own.parse_args(rest)))

    def _parser(self) -> Parser:
        width = max(map(len, self.commands))
        listed = "\n".join(f"  {name:<{width}}  {command.about}" for name, command in self.commands.items())
        examples = [example for command in self.commands.values() for example in command.examples]
        parser = Parser(
            prog=self.name,
            usage=f"{self.name} COMMAND [--help] ...",
            description=f"{self.about}\n\ncommands:\n{listed}",
            epilog=epilog(examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
        return parser


def _version() -> str:
    from importlib.metadata import version

    return version("rhizome")
