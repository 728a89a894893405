"""What stands on the lines between a daemon and its egress process, and which build of it this is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from agent.companion.lines import Displaced, Hello, decode, digest, vocabulary
from seed_server.egress import api

#: The files outside this package that an egress process runs; all of them together are its build.
NEIGHBOURS = (
    "companion/*.py",
    "carrier/__init__.py",
    "carrier/api.py",
    "carrier/connect.py",
    "carrier/crowd.py",
    "carrier/sockets.py",
    "carrier/tls.py",
    "carrier/upgrade.py",
    "errors.py",
    "exits.py",
    "health.py",
    "identity.py",
    "logs.py",
    "model.py",
    "run.py",
    "status.py",
)

FromEgress = Hello | Displaced | api.Event


@cache
def build() -> str:
    """Names the code of the egress process as it was when first asked."""
    package = Path(__file__).parent
    agent = package.parents[1] / "agent"
    return digest([*sorted(package.glob("*.py")), *(path for name in NEIGHBOURS for path in sorted(agent.glob(name)))])


def decode_event(line: bytes) -> FromEgress:
    """Raises BadMessage."""
    return decode(line, _EVENTS)  # type: ignore[no-any-return]


def decode_command(line: bytes) -> api.Command:
    """Raises BadMessage."""
    return decode(line, _COMMANDS)  # type: ignore[no-any-return]


_EVENTS = vocabulary(FromEgress)
_COMMANDS = vocabulary(api.Command)
