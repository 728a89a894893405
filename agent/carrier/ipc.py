"""The lines between a daemon and its carrier: one JSON object each, `{"up": {"stream": 1, ...}}`.

Read and written by the types in agent.carrier.api, so there is no second description of them. Reading is strict: both
sides have the same build (the carrier says which in its first line), so anything unexpected is an error and no dialect.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.util import source_hash
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from agent.carrier import api
from agent.errors import BadMessage

#: A control message is at most 64 KiB of UTF-8; JSON may write each byte as six.
LINE_MAX_BYTES = 1024 * 1024
#: The files outside this package that a carrier process runs; with the package's own they are its build.
NEIGHBOURS = ("backoff.py", "errors.py", "exits.py", "identity.py", "logs.py", "model.py", "run.py")


@dataclass(frozen=True, slots=True)
class Hello:
    """The carrier's first line. A daemon that finds another build than its own replaces the carrier."""

    build: str
    pid: int


@dataclass(frozen=True, slots=True)
class Displaced:
    """The carrier's last line to a daemon when another one has attached."""


_UCRED = struct.Struct("3i")  # struct ucred of unix(7): process, user, group

FromCarrier = Hello | Displaced | api.Event


@cache
def build() -> str:
    """Names the code of the carrier as it was when first asked: a digest of its source files."""
    package = Path(__file__).parent
    sources = [*sorted(package.glob("*.py")), *(package.parent / name for name in NEIGHBOURS)]
    # As the interpreter tells changed source files (PEP 552); hashlib would cost the process 0.7 MiB.
    return source_hash(b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in sources)).hex()


def peer_credentials(conn: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket (SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def encode(value: object) -> bytes:
    """One line with its newline. `value` is one of the dataclasses of this module or of agent.carrier.api."""
    return json.dumps(_write(value), separators=(",", ":")).encode() + b"\n"


def decode_event(line: bytes) -> FromCarrier:
    """Raises BadMessage."""
    return _decode(line, _EVENTS)  # type: ignore[no-any-return]


def decode_command(line: bytes) -> api.Command:
    """Raises BadMessage."""
    return _decode(line, _COMMANDS)  # type: ignore[no-any-return]


def _decode(line: bytes, kinds: Mapping[str, type]) -> Any:
    try:
        return _tagged(json.loads(line, parse_constant=_no_constant), kinds)
    except (ValueError, TypeError, RecursionError) as exc:
        # What stood there may be a grant with its preshared key: it is not repeated.
        raise BadMessage(f"a line that is not of this protocol ({exc})") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _write(value: object) -> Any:
    if is_dataclass(value):
        return {type(value).__name__.lower(): {f.name: _write(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple):
        return [_write(item) for item in value]
    return value


def _tagged(raw: Any, kinds: Mapping[str, type]) -> Any:
    if not isinstance(raw, dict) or len(raw) != 1:
        raise ValueError("an object with one key is wanted")
    ((tag, body),) = raw.items()
    if tag not in kinds:
        raise ValueError("an unknown kind")
    if not isinstance(body, dict):
        raise ValueError(f"{tag}: an object is wanted")
    hints = _hints(kinds[tag])
    if body.keys() != hints.keys():
        raise ValueError(f"{tag}: other fields than {', '.join(hints) or 'none'}")
    return kinds[tag](**{name: _read(hint, body[name], f"{tag}.{name}") for name, hint in hints.items()})


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def _read(hint: Any, raw: Any, where: str) -> Any:
    """A value of the annotated type. Raises ValueError."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        choices = get_args(hint)
        if raw is None and NoneType in choices:
            return None
        others = [choice for choice in choices if choice is not NoneType]
        return _tagged(raw, _by_tag(others)) if len(others) > 1 else _read(others[0], raw, where)
    if origin is tuple:
        items = get_args(hint)
        if not isinstance(raw, list) or (items[-1] is not ... and len(raw) != len(items)):
            raise ValueError(f"{where}: not a list of the right length")
        kinds = [items[0]] * len(raw) if items[-1] is ... else items
        return tuple(_read(kind, item, where) for kind, item in zip(kinds, raw, strict=True))
    if is_dataclass(hint):
        return _tagged(raw, _by_tag([hint]))
    if hint is float and type(raw) is int and abs(raw) < 2**53:
        return float(raw)
    if type(raw) is not hint or (hint is float and not isfinite(raw)):
        raise ValueError(f"{where}: not {hint.__name__}")
    return raw


def _by_tag(kinds: Iterable[Any]) -> Mapping[str, type]:
    return {kind.__name__.lower(): kind for kind in kinds}


_EVENTS = _by_tag(get_args(FromCarrier))
_COMMANDS = _by_tag(get_args(api.Command))
