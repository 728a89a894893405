"""Who is kept out although the credential is good: a text of lines, one entry each. Pure.

    # node-7 was stolen
    spiffe://shoot--garden--a/shoot-client/node-7        2026-11-21 stolen
    l2uNWzLmzfqqRkPcTzvYvFcqNTV3DnVXTrqAMYOXIlA=         a WireGuard public key

An entry is an identity as a certificate names it, or a WireGuard public key; what follows it on its line is for people.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.identity import SCHEME, Identity
from agent.model import PublicKey

COMMENT = "#"
#: More is no list that somebody has written.
TEXT_MAX_CHARS = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DenyList:
    """Identities as text, and public keys."""

    identities: frozenset[str] = frozenset()
    keys: frozenset[PublicKey] = frozenset()

    def denies(self, identity: Identity, keys: Iterable[PublicKey] = ()) -> bool:
        """Whether this identity, or one of its keys, is on the list."""
        return str(identity) in self.identities or not self.keys.isdisjoint(keys)

    def __len__(self) -> int:
        return len(self.identities) + len(self.keys)


def entry(text: str) -> str:
    """An entry in its one spelling. Raises ValueError for what is neither an identity nor a public key."""
    if text.startswith(SCHEME):
        return str(Identity.parse(text))
    try:
        return str(PublicKey.from_base64(text))
    except ValueError:
        raise ValueError("neither an identity (spiffe://CONTROL_PLANE/ROLE/NAME) nor a WireGuard public key") from None


def parse(text: str) -> DenyList:
    """Raises ValueError with the number of the line that is wrong: a list of which a part is not understood denies nobody
    for certain."""
    if len(text) > TEXT_MAX_CHARS:
        raise ValueError(f"longer than {TEXT_MAX_CHARS} characters")
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if (word := _first_word(line)) is not None:
            try:
                entries.append(entry(word))
            except ValueError as exc:
                raise ValueError(f"line {number}: {exc}") from None
    return DenyList(
        frozenset(word for word in entries if word.startswith(SCHEME)),
        frozenset(PublicKey.from_base64(word) for word in entries if not word.startswith(SCHEME)),
    )


def added(text: str, word: str, remark: str) -> str:
    """The text with this entry, once. `remark` is for people, on one line."""
    if word in map(_first_word, text.splitlines()):
        return text
    remark = "".join(c if c.isprintable() else " " for c in remark)
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{f'{word} {remark}'.strip()}\n"


def removed(text: str, word: str) -> str:
    """The text without this entry."""
    return "".join(line for line in text.splitlines(keepends=True) if _first_word(line) != word)


def _first_word(line: str) -> str | None:
    words = line.split()
    return None if not words or words[0].startswith(COMMENT) else words[0]
