"""Lines between a daemon and a companion process: one JSON object each, `{"up": {"stream": 1, ...}}`.

Read and written by the types of the two sides' vocabulary, so there is no second description of them. Reading is strict:
both sides have the same build (the companion says which in its first line), so anything unexpected is an error and no dialect.
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

from agent.errors import BadMessage

#: A control message is at most 64 KiB of UTF-8; JSON may write each byte as six.
LINE_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hello:
    """A companion's first line. A daemon that finds another build than its own replaces the companion."""

    build: str
    pid: int


@dataclass(frozen=True, slots=True)
class Displaced:
    """A companion's last line to a daemon when another one has attached."""


@dataclass(frozen=True, slots=True)
class Drain:
    """For companions with work of their own: take no more of it, finish what is open within `drain_s`, and exit."""

    drain_s: float


_UCRED = struct.Struct("3i")  # struct ucred of unix(7): process, user, group


def digest(sources: Iterable[Path]) -> str:
    """Names the code in these files."""
    # As the interpreter tells changed source files (PEP 552); hashlib would cost the process 0.7 MiB.
    return source_hash(b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in sources)).hex()


def peer_credentials(conn: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket (SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def encode(value: object) -> bytes:
    """One line with its newline. `value` is a dataclass of a vocabulary."""
    return json.dumps(_write(value), separators=(",", ":")).encode() + b"\n"


def vocabulary(union: Any) -> Mapping[str, type]:
    """What may stand on a line: the dataclasses of a union, by their tags."""
    return _by_tag(get_args(union))


def decode(line: bytes, kinds: Mapping[str, type]) -> Any:
    """A value of one of these kinds. Raises BadMessage."""
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
