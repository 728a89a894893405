"""The audit log: one JSON line for everything that decides who may do what, for years in a drawer.

Its events and their fields are SCHEMA, from which docs/audit.md is made. Whatever an outsider can provoke is limited per event and
identity, and the next line says how many were left out. No secret is ever a field; texts are redacted all the same.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from agent.identity import Identity
from agent.logs import Limited, plain, redact, timestamp

log = logging.getLogger("rhizome.audit")

Value = str | int | float | bool | tuple[str, ...]

#: Lines of one event about one identity: so many at once, and then so many per second.
BURST, PER_S = 20, 1.0
_KEYS_MAX = 1024


class Outcome(Enum):
    """What became of it."""

    ALLOWED = "allowed"
    DENIED = "denied"
    ENDED = "ended"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Kind:
    """`fields` are those beside COMMON that a line of this event may have."""

    outcome: Outcome
    about: str
    fields: tuple[str, ...] = ()


#: In every line; `identity` where there is one, `suppressed` where lines were left out before.
COMMON = {
    "ts": "time of day, RFC 3339 in UTC",
    "event": "one of the events below",
    "outcome": "allowed, denied, ended or changed",
    "control_plane": "whose seed server this is",
    "text": "the same in words, for people",
    "identity": "whom it is about, as a certificate names it",
    "suppressed": "how many lines of this event about this identity were left out since the last one",
}

SCHEMA: Mapping[str, Kind] = {
    "server.started": Kind(Outcome.CHANGED, "a seed server begins to decide", ("epoch", "denied")),
    "server.stopped": Kind(Outcome.CHANGED, "it ends; the data plane goes on without anybody who decides"),
    "stream.up": Kind(Outcome.ALLOWED, "a client has connected and shown a good credential", ("stream", "address")),
    "stream.down": Kind(Outcome.ENDED, "its connection has ended", ("stream", "reason")),
    "connection.turned_away": Kind(Outcome.DENIED, "connections that became no stream", ("reason", "count")),
    "enrolment.spent": Kind(Outcome.ALLOWED, "a machine has used its one-time token", ("token", "address")),
    "enrolment.refused": Kind(
        Outcome.DENIED, "a one-time token that is no good, or no more", ("token", "address", "reason")
    ),
    "credential.issued": Kind(
        Outcome.ALLOWED,
        "this server has signed a credential for who enrolled with such a token",
        ("credential", "lifetime_s"),
    ),
    "enroll.granted": Kind(
        Outcome.ALLOWED,
        "a client is in, or in again",
        ("stream", "public_keys", "addresses", "prefixes", "lifetime_s", "renewal"),
    ),
    "enroll.refused": Kind(Outcome.DENIED, "a client is not let in", ("stream", "reason")),
    "prefix.refused": Kind(Outcome.DENIED, "a prefix that a client may not carry", ("prefix", "reason")),
    "key.changed": Kind(Outcome.CHANGED, "a client came with other WireGuard keys than before", ("public_keys",)),
    "grant.expired": Kind(Outcome.ENDED, "a grant was not renewed, or its credential ended; the peer is gone"),
    "credential.ended": Kind(
        Outcome.ENDED, "a stream is closed because its certificate or token has ended", ("stream",)
    ),
    "client.expelled": Kind(Outcome.DENIED, "a client that was in is out", ("reason",)),
    "client.lost": Kind(Outcome.CHANGED, "a client is not relied on any more", ("reason",)),
    "client.well": Kind(Outcome.CHANGED, "a client is relied on"),
    "prefixes.moved": Kind(Outcome.CHANGED, "shared prefixes are carried by other clients now", ("count",)),
    "rotation.begun": Kind(
        Outcome.CHANGED, "WireGuard's keys are being replaced, the server's and the clients'", ("public_key",)
    ),
    "rotation.ended": Kind(
        Outcome.CHANGED,
        "they are, but for those of so many clients, which had to connect anew",
        ("public_key", "count"),
    ),
    "policy.changed": Kind(Outcome.CHANGED, "the deny list is another one", ("denied",)),
}


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    suppressed: int = 0


@dataclass(slots=True)
class Audit:
    """`write` takes a line with its newline, `wall` is the time of day, `clock` monotonic."""

    control_plane: str
    write: Callable[[bytes], None]
    wall: Callable[[], float]
    clock: Callable[[], float]
    _buckets: OrderedDict[tuple[str, str], _Bucket] = field(default_factory=OrderedDict)

    def record(self, event: str, text: str, identity: Identity | None = None, **fields: Value) -> None:
        """Raises KeyError for an event that is not in the schema, ValueError for a field that is not."""
        kind = SCHEMA[event]
        if not fields.keys() <= set(kind.fields):
            raise ValueError(f"{event} has no {', '.join(sorted(fields.keys() - set(kind.fields)))}")
        who = str(identity) if identity is not None else ""
        bucket = self._bucket(event, who)
        if bucket.tokens < 1:
            bucket.suppressed += 1
            return
        bucket.tokens -= 1
        line: dict[str, object] = {
            "ts": timestamp(self.wall()),
            "event": event,
            "outcome": kind.outcome.value,
            "control_plane": self.control_plane,
            "text": redact(text),
        }
        if who:
            line["identity"] = who
        line |= {
            name: [plain(v) for v in value] if isinstance(value, tuple) else plain(value)
            for name, value in fields.items()
        }
        if bucket.suppressed:
            line["suppressed"], bucket.suppressed = bucket.suppressed, 0
        self.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _bucket(self, event: str, who: str) -> _Bucket:
        now, key = self.clock(), (event, who)
        bucket = self._buckets.pop(key, None) or _Bucket(BURST, now)
        bucket.tokens, bucket.at = min(BURST, bucket.tokens + (now - bucket.at) * PER_S), now
        self._buckets[key] = bucket
        if len(self._buckets) > _KEYS_MAX:
            self._buckets.popitem(last=False)
        return bucket


class Journal:
    """What happens to clients: a line in the log, and the same in the audit log, if there is one."""

    def __init__(self, log: logging.Logger, audit: Audit | None = None) -> None:
        self._log = log
        self._audit = audit

    def note(self, level: int, event: str, text: str, identity: Identity | None = None, **fields: Value) -> None:
        """`event` and `fields` are those of SCHEMA."""
        extra = {"event": event, "peer": identity.name if identity is not None else None, **fields}
        self._log.log(level, "%s", text, extra=extra)
        if self._audit is not None:
            self._audit.record(event, text, identity, **fields)


class AuditFile:
    """Appends whole lines, each with one write; a file that was moved away is made again. What cannot be written is said in
    the log, and stops nothing: who can fill the disk must not be able to close the tunnel."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be opened."""
        self._path = path
        self._limited = Limited(log)
        self._file = self._open()

    def write(self, line: bytes) -> None:
        try:
            if not self._is_current():
                fresh = self._open()
                os.close(self._file)
                self._file = fresh
            os.write(self._file, line)
        except OSError as exc:
            fields = {"event": "audit.lost"}
            self._limited.log(logging.ERROR, "lost", "cannot write to %s: %s", self._path, exc.strerror, extra=fields)

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _is_current(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._file)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def markdown() -> str:
    """docs/audit.md."""
    lines = [
        "# The audit log",
        "",
        "`audit_log` of the seed server names a file; one JSON object per line, appended, made again when it was moved away. This page is made",
        "from `seed_server/audit.py`.",
        "",
        f"At most {BURST} lines of one event about one identity at once, and then {PER_S:g} per second; the next line says how many were left out.",
        "Public keys are public; private and preshared keys, tokens and certificates never stand there. When a line cannot be written, the",
        "daemon's log says so (`audit.lost`) and everything goes on.",
        "",
        "| in every line | is |",
        "|---|---|",
        *(f"| `{name}` | {about} |" for name, about in COMMON.items()),
        "",
        "| event | outcome | means | more fields |",
        "|---|---|---|---|",
    ]
    for event, kind in SCHEMA.items():
        fields = ", ".join(f"`{name}`" for name in kind.fields)
        lines.append(f"| `{event}` | {kind.outcome.value} | {kind.about} | {fields} |")
    return "\n".join(lines) + "\n"
