"""What stands on the lines between a daemon and its carrier, and which build of the carrier this is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from agent.carrier import api
from agent.companion.lines import Displaced, Hello, decode, digest, vocabulary

#: The files outside this package and agent.companion that a carrier process runs; all of them together are its build.
NEIGHBOURS = (
    "backoff.py",
    "errors.py",
    "exits.py",
    "files.py",
    "identity.py",
    "logs.py",
    "model.py",
    "onetime.py",
    "run.py",
)

FromCarrier = Hello | Displaced | api.Event


@cache
def build() -> str:
    """Names the code of the carrier as it was when first asked: a digest of its source files."""
    package = Path(__file__).parent
    agent = package.parent
    return digest(
        [
            *sorted(package.glob("*.py")),
            *sorted((agent / "companion").glob("*.py")),
            *(agent / name for name in NEIGHBOURS),
        ]
    )


def decode_event(line: bytes) -> FromCarrier:
    """Raises BadMessage."""
    return decode(line, _EVENTS)  # type: ignore[no-any-return]


def decode_command(line: bytes) -> api.Command:
    """Raises BadMessage."""
    return decode(line, _COMMANDS)  # type: ignore[no-any-return]


_EVENTS = vocabulary(FromCarrier)
_COMMANDS = vocabulary(api.Command)
