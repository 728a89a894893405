"""rhizome-agent: the tools beside the daemons. Each sub-command is a module that is imported only when it is asked for.

To add one: write a module with `arguments(parser)` and `run(arguments) -> int`, and a line in COMMANDS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from agent.cli.flags import Parser, epilog
from agent.errors import ConfigError
from agent.run import run_command
from agent.settings import nearest

PROGRAM = "rhizome-agent"


@dataclass(frozen=True, slots=True)
class Command:
    """`module` is imported when the command is used. `examples` can be copied; a test runs their command lines."""

    module: str
    about: str
    examples: tuple[str, ...]


COMMANDS: dict[str, Command] = {
    "status": Command(
        "agent.cli.status",
        "say whether the tunnels of this host are up, and if not, why",
        ("rhizome-agent status", "rhizome-agent status -o json"),
    ),
    "pki": Command(
        "agent.cli.pki",
        "make a CA and the certificates of server, clients and sidecars",
        (
            "rhizome-agent pki init --control-plane shoot--garden--a",
            "rhizome-agent pki server --dns vpn.example --ip 192.0.2.1",
            "rhizome-agent pki client --name node-1",
        ),
    ),
    "cleanup": Command(
        "agent.cli.cleanup",
        "remove all that Rhizome made in this network namespace, and stop its carriers",
        ("rhizome-agent cleanup --dry-run", "rhizome-agent cleanup"),
    ),
    "wgconf": Command(
        "agent.cli.wgconf",
        "show a WireGuard device as wg-quick text, without its keys (needs rhizome[wgconf])",
        ("rhizome-agent wgconf rz-seed",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: exit codes are those of agent.exits."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: dispatch(words))


def dispatch(words: Sequence[str]) -> int:
    """Raises ConfigError for a command line that means nothing, SystemExit after --help."""
    parser = _parser()
    if not words or words[0].startswith("-"):
        parser.parse_args(words or ["--help"])
    name, rest = words[0], words[1:]
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f"no sub-command {name[:32]!r}{nearest(name, COMMANDS)}; see `{PROGRAM} --help`")
    module = import_module(command.module)
    own = Parser(
        prog=f"{PROGRAM} {name}",
        description=command.about,
        epilog=epilog(command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.arguments(own)
    return int(module.run(own.parse_args(rest)))


def _parser() -> Parser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items())
    examples = [example for command in COMMANDS.values() for example in command.examples]
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [--help] ...",
        description=f"The tools beside the daemons rhizome-seed-server and rhizome-shoot-client.\n\ncommands:\n{listed}",
        epilog=epilog(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    return parser


def _version() -> str:
    from importlib.metadata import version

    return version("rhizome")


if __name__ == "__main__":
    sys.exit(main())
