"""Who may enrol once without a certificate and without another's token: a text of lines, one token each. Pure.

    # made for the edge site
    5f2b...64 hexadecimal digits...  spiffe://shoot--garden--a/shoot-client/edge-1  2026-11-21T16:00:00Z  by ada

A line has the SHA-256 of a token, whom it makes of its holder, and until when it may be used; what follows is for people. The
token itself stands nowhere: it has 256 random bits, so its SHA-256 does not help anybody to find it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hmac import compare_digest

from agent.identity import Identity, Role
from agent.onetime import PREFIX

COMMENT = "#"
TEXT_MAX_CHARS = 1024 * 1024
TOKEN_BYTES = 32
#: So many digits name a token in logs and lists.
ID_DIGITS = 12

_DIGEST = re.compile("[0-9a-f]{64}", re.ASCII)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Line:
    """One token. `expires_at` is the time of day until which it may be used for the first time."""

    digest: str
    identity: Identity
    expires_at: float

    @property
    def id(self) -> str:
        return token_id(self.digest)

    def __str__(self) -> str:
        return f"{self.digest}  {self.identity}  {clock(self.expires_at)}"


def made(random: bytes) -> str:
    """A token of TOKEN_BYTES random bytes."""
    return PREFIX + urlsafe_b64encode(random).rstrip(b"=").decode()


def digest_of(token: str) -> str:
    """What a line has of a token; also names any other credential without telling it."""
    return hashlib.sha256(token.encode()).hexdigest()


def token_id(digest: str) -> str:
    """The token's name for people."""
    return digest[:ID_DIGITS]


def clock(wall: float) -> str:
    """A time of day as it stands in the file (RFC 3339 in UTC, whole seconds)."""
    return dt.datetime.fromtimestamp(int(wall), dt.UTC).strftime(_TIME)


def enrollable(identity: Identity) -> Identity:
    """The identity itself. Raises ValueError for one that no token makes: other roles run in pods, which have tokens."""
    if identity.role is not Role.SHOOT_CLIENT:
        raise ValueError(f"{identity} is no shoot client: a {identity.role.value} has a certificate or its pod's token")
    return identity


def parse(text: str) -> tuple[Line, ...]:
    """Raises ValueError with the number of the line that is wrong: of a list of which a part is not understood no line is used."""
    if len(text) > TEXT_MAX_CHARS:
        raise ValueError(f"longer than {TEXT_MAX_CHARS} characters")
    lines: dict[str, Line] = {}
    for number, words in _words(text):
        try:
            line = _line(words)
            if line.digest in lines:
                raise ValueError("the same token stands there twice")
        except ValueError as exc:
            raise ValueError(f"line {number}: {exc}") from None
        lines[line.digest] = line
    return tuple(lines.values())


def find(lines: Iterable[Line], token: str) -> Line | None:
    """The token's line. Takes as long for every token."""
    digest, found = digest_of(token), None
    for line in lines:
        if compare_digest(line.digest, digest):
            found = line
    return found


def added(text: str, line: Line, remark: str, now: float) -> str:
    """The text with this line, and without those of tokens that have expired. `remark` is for people, on one line."""
    text = removed(text, lambda old: old.expires_at <= now)
    remark = "".join(c if c.isprintable() else " " for c in remark)
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{f'{line}  {remark}'.strip()}\n"


def removed(text: str, unwanted: Callable[[Line], bool]) -> str:
    """The text without the lines of these tokens; comments stay. Raises ValueError as `parse`."""
    gone = {line.digest for line in parse(text) if unwanted(line)}
    return "".join(line for line in text.splitlines(keepends=True) if (line.split() or [""])[0] not in gone)


def _words(text: str) -> list[tuple[int, list[str]]]:
    numbered = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, words) for number, words in numbered if words and not words[0].startswith(COMMENT)]


def _line(words: list[str]) -> Line:
    if len(words) < 3 or not _DIGEST.fullmatch(words[0]):
        raise ValueError(
            "not the SHA-256 of a token, an identity and a time (`rhizome-agent enrol-token create` writes such lines)"
        )
    try:
        expires_at = dt.datetime.strptime(words[2], _TIME).replace(tzinfo=dt.UTC).timestamp()
    except ValueError:
        raise ValueError("the time is not written as 2026-11-21T16:00:00Z") from None
    return Line(words[0], enrollable(Identity.parse(words[1])), expires_at)
