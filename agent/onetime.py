"""How a one-time enrolment token is written. Pure, and light: the carrier process reads them too.

    rzt1_<43 characters>                  as it was made: 256 random bits in base64url
    rzt1_<43 characters>.<32 characters>  taken by one machine: with 128 random bits of its own behind it

The part behind the dot is made by the machine before it shows the token for the first time. The server binds the token to it, so
that this machine alone may show it again when the answer was lost on the way.
"""

from __future__ import annotations

import re

PREFIX = "rzt1_"

_BARE = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII)
_HOLDER = re.compile("[0-9a-f]{32}", re.ASCII)


def is_one_time(token: str) -> bool:
    """Whether a bearer token means to be one of these."""
    return token.startswith(PREFIX)


def is_bare(token: str) -> bool:
    """Whether it is one that no machine has taken yet."""
    return _BARE.fullmatch(token) is not None


def taken(token: str, random: bytes) -> str:
    """A bare token with the machine's own 16 random bytes."""
    return f"{token}.{random.hex()}"


def parts(token: str) -> tuple[str, str] | None:
    """The token as it was made, and what its machine has put behind it; None for anything else."""
    made, dot, holder = token.partition(".")
    return (made, holder) if dot and is_bare(made) and _HOLDER.fullmatch(holder) else None
