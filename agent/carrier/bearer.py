"""Bearer tokens of clients without a certificate (RFC 6750 section 2.1): read from the head, judged by the daemon.

The carrier knows nothing of issuers and keys. It hands a token to the daemon, and who it is good for comes back.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent import onetime
from agent.carrier.api import Admit, Presented, Turn
from agent.carrier.upgrade import Rejection, Request, judge_identity
from agent.errors import ConfigError
from agent.files import write_atomically
from agent.identity import Identity

TOKEN_MAX_CHARS = 8 * 1024
#: Less than the client waits for the answer to its request.
JUDGED_WITHIN_S = 4.0

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750 section 2.1, b64token


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has shown a good credential, the time of day at which it ends, and what the daemon wants to be told with the stream."""

    identity: Identity
    ends_at: float
    ticket: str = ""


def token_of(request: Request) -> str | Rejection:
    """The token in a request's head."""
    values = [value for name, value in request.headers if name == "authorization"]
    if not values:
        words = "you showed neither a certificate nor a token: give the client one of them"
        return Rejection(401, "no_credential", words, "http_request_denied")
    scheme, _, token = values[0].partition(" ")
    token = token.strip()
    if len(values) > 1 or scheme.lower() != "bearer" or not _TOKEN.fullmatch(token) or len(token) > TOKEN_MAX_CHARS:
        words = f"the header Authorization is not one bearer token of at most {TOKEN_MAX_CHARS} characters"
        return Rejection(401, "token_malformed", words, "http_request_denied")
    return token


def read_token(path: str) -> str:
    """The token in a file as it is now; a one-time token is made ours first. Raises ConfigError, which does not repeat what
    stands there."""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        raise ConfigError(f"cannot read the token in {path}: {reason}") from None
    if not _TOKEN.fullmatch(token) or len(token) > TOKEN_MAX_CHARS:
        raise ConfigError(f"{path} is not one bearer token of at most {TOKEN_MAX_CHARS} characters")
    if not onetime.is_one_time(token):
        return token
    if not onetime.is_bare(token) and onetime.parts(token) is None:
        raise ConfigError(f"{path} has an enrolment token that is not whole: copy it again, or have a new one made")
    return _ours(Path(path), token)


def _ours(path: Path, token: str) -> str:
    """A one-time token with what makes it this machine's, on the disk before anybody sees it. That also shows, before the token is
    spent, that the credential that comes for it can be kept."""
    if not onetime.is_bare(token):
        return token
    if path.is_symlink():
        words = (
            "is a symbolic link, and what is exchanged for an enrolment token replaces the file: name the file itself"
        )
        raise ConfigError(f"{path} {words}")
    ours = onetime.taken(token, os.urandom(16))
    try:
        write_atomically(path, f"{ours}\n".encode(), 0o600)
    except OSError as exc:
        words = f"cannot write to {path}, where the credential is to be kept that is exchanged for the enrolment token"
        raise ConfigError(f"{words}: {exc.strerror}: give the client a directory of its own for it") from exc
    return ours


class Inquiries:
    """Tokens that the daemon is asked about. Their number is bounded by who asks: strangers are few."""

    def __init__(self, publish: Callable[[Presented], None]) -> None:
        self._publish = publish
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[Admit | Turn]] = {}

    async def ask(self, token: str, peer: str, control_plane: str) -> Holder | Rejection:
        """What the daemon says, or a rejection when it does not say anything in time."""
        visit = next(self._numbers)
        self._open[visit] = asyncio.get_running_loop().create_future()
        try:
            self._publish(Presented(visit, token, peer))
            async with asyncio.timeout(JUDGED_WITHIN_S):
                answer = await self._open[visit]
        except TimeoutError:
            words = "the server cannot check tokens just now: its daemon does not answer"
            return Rejection(503, "token_unjudged", words, "http_request_error")
        finally:
            del self._open[visit]
        if isinstance(answer, Turn):
            return Rejection(answer.status, answer.cause, answer.words, "http_request_denied")
        identity = judge_identity(answer.identity, control_plane, "token")
        return identity if isinstance(identity, Rejection) else Holder(identity, answer.ends_at, answer.ticket)

    def answer(self, answer: Admit | Turn) -> None:
        """The daemon has decided. Nothing for a visitor who is gone."""
        future = self._open.get(answer.visit)
        if future is not None and not future.done():
            future.set_result(answer)
