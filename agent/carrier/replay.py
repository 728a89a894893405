"""What is kept of a stream's control messages for a daemon that attaches later, and how many are let through at all.

Pure. Both exist because a peer is not trusted: what it says is bounded in number and size, whoever listens or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

TYPES_MAX = 8
BYTES_MAX = 128 * 1024
TYPE_MAX = 64

#: A session says a few messages a minute. Beyond these a stream is closed.
MESSAGES_BURST, MESSAGES_PER_S = 64.0, 8.0
BYTES_BURST, BYTES_PER_S = 512 * 1024.0, 128 * 1024.0


def message_type(text: str) -> str | None:
    """The message's `type`; None when it has none that could be kept under."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kind = body.get("type") if isinstance(body, dict) else None
    return kind if isinstance(kind, str) and len(kind) <= TYPE_MAX else None


@dataclass(slots=True)
class Replay:
    """The last message of each type, oldest first. Beyond the limits the oldest is forgotten."""

    _kept: dict[str, str] = field(default_factory=dict)
    _bytes: int = 0

    def keep(self, text: str) -> None:
        kind = message_type(text)
        if kind is None:
            return
        self._forget(kind)
        self._kept[kind] = text
        self._bytes += _size(text)
        while len(self._kept) > TYPES_MAX or self._bytes > BYTES_MAX:
            self._forget(next(iter(self._kept)))

    def _forget(self, kind: str) -> None:
        self._bytes -= _size(self._kept.pop(kind, ""))

    def messages(self) -> tuple[str, ...]:
        return tuple(self._kept.values())


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@dataclass(slots=True)
class Meter:
    """Two token buckets, for the number and the size of messages."""

    _messages: float = MESSAGES_BURST
    _bytes: float = BYTES_BURST
    _at: float | None = None

    def passes(self, size: int, now: float) -> bool:
        """Count a message of `size` characters at `now` (monotonic seconds). False: too many, too large, too fast."""
        elapsed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._messages = min(MESSAGES_BURST, self._messages + elapsed * MESSAGES_PER_S) - 1
        self._bytes = min(BYTES_BURST, self._bytes + elapsed * BYTES_PER_S) - size
        return self._messages >= 0 and self._bytes >= 0
