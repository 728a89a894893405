"""Bearer tokens of clients without a certificate (RFC 6750 section 2.1): read from the head, judged by the daemon.

The carrier knows nothing of issuers and keys. It hands a token to the daemon, and who it is good for comes back.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.carrier.api import Admit, Presented, Turn
from agent.carrier.upgrade import Rejection, Request, judge_identity
from agent.errors import ConfigError
from agent.identity import Identity

TOKEN_MAX_CHARS = 8 * 1024
#: Less than the client waits for the answer to its request.
JUDGED_WITHIN_S = 4.0

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750 section 2.1, b64token


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has shown a good credential, and the time of day at which it ends."""

    identity: Identity
    ends_at: float


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
    """The token in a file as it is now. Raises ConfigError, which does not repeat what stands there."""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        raise ConfigError(f"cannot read the token in {path}: {reason}") from None
    if not _TOKEN.fullmatch(token) or len(token) > TOKEN_MAX_CHARS:
        raise ConfigError(f"{path} is not one bearer token of at most {TOKEN_MAX_CHARS} characters")
    return token


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
        return identity if isinstance(identity, Rejection) else Holder(identity, answer.ends_at)

    def answer(self, answer: Admit | Turn) -> None:
        """The daemon has decided. Nothing for a visitor who is gone."""
        future = self._open.get(answer.visit)
        if future is not None and not future.done():
            future.set_result(answer)
