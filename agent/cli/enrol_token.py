"""`rhizome-agent enrol-token`: one-time tokens, for machines that have neither a certificate nor a token of Kubernetes."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.cli.table import table
from agent.errors import ConfigError
from agent.exits import Exit
from agent.health import duration
from agent.identity import Identity

#: A token that nobody uses soon is one that somebody else may find.
TTL_MAX_S = 7 * 86400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MODE = 0o600


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(parser))
    create = commands.add_parser("create", help="make a token, print it once, and write its line into the file")
    create.add_argument(
        "identity", metavar="IDENTITY", help="whom it makes of its holder: spiffe://CONTROL_PLANE/shoot-client/NAME"
    )
    create.add_argument(
        "--ttl",
        type=_ttl,
        default=3600,
        metavar="TIME",
        help="how long it may be used, such as 30m, 1h or 2d (default: 1h)",
    )
    create.add_argument("--remark", default="", metavar="TEXT", help="for people who read the file")
    shown = commands.add_parser("list", help="say which tokens there are, and how long each may be used")
    remove = commands.add_parser("remove", help="make tokens useless that were not used yet")
    remove.add_argument("which", metavar="ID|IDENTITY", help="as `list` shows it; an identity: all of its tokens")
    for sub in (create, shown, remove):
        sub.add_argument("--file", type=Path, required=True, metavar="PATH", help="the seed server's enrolment_file")


def run(arguments: argparse.Namespace) -> int:
    if arguments.what == "create":
        return _create(arguments)
    return _list(arguments.file) if arguments.what == "list" else _remove(arguments)


def _create(arguments: argparse.Namespace) -> int:
    """The token alone goes to standard output, so that it can go from there into a file."""
    from agent import enrolment  # hashlib, only when it is used

    try:
        identity = enrolment.enrollable(Identity.parse(arguments.identity))
    except ValueError as exc:
        raise ConfigError(f"enrol-token create: {exc}") from exc
    now, token = time.time(), enrolment.made(os.urandom(enrolment.TOKEN_BYTES))
    line = enrolment.Line(enrolment.digest_of(token), identity, float(int(now) + arguments.ttl))
    _edit(arguments.file, lambda text: enrolment.added(text, line, arguments.remark, now))
    sys.stderr.write(
        f"token {line.id} makes its holder {identity}; it may be used once, within {duration(arguments.ttl)}\n"
        "it is shown now and never again: put it into the token_file of that machine's client\n"
    )
    sys.stdout.write(f"{token}\n")
    return Exit.OK


def _list(path: Path) -> int:
    from agent import enrolment

    now = time.time()
    try:
        lines = enrolment.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc.strerror if isinstance(exc, OSError) else exc}") from exc
    rows = [
        (line.id, str(line.identity), duration(line.expires_at - now) if line.expires_at > now else "expired")
        for line in lines
    ]
    sys.stdout.write(
        "\n".join(table(["ID", "IDENTITY", "MAY BE USED FOR"], rows)).lstrip() + "\n" if rows else "no tokens\n"
    )
    return Exit.OK


def _remove(arguments: argparse.Namespace) -> int:
    from agent import enrolment

    which = arguments.which
    if _edit(arguments.file, lambda text: enrolment.removed(text, lambda line: which in (line.id, str(line.identity)))):
        sys.stdout.write(
            f"{which}: nobody enrols with it any more; who has done so is ended by `rhizome-agent revoke`\n"
        )
    else:
        sys.stdout.write(f"{which}: there was no such token\n")
    return Exit.OK


def _edit(path: Path, change: Callable[[str], str]) -> bool:
    from agent.files import edit

    try:
        return edit(path, change, _MODE)
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _ttl(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text, re.ASCII)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= seconds <= TTL_MAX_S:
        raise argparse.ArgumentTypeError(f"a time such as 30m, 1h or 2d, at most {duration(TTL_MAX_S)}")
    return seconds
