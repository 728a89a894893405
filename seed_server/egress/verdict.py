"""What a CONNECT is answered: nothing but one line, and when it is no 200, the cause stands in the reason phrase. Pure.

kube-apiserver shows its user the reason phrase and never reads a body. The words may repeat what a hostile client or name
server said, so only printable ASCII of a bounded length gets into the line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

REASON_MAX = 200
ESTABLISHED = b"HTTP/1.1 200 OK\r\n\r\n"


class Stage(Enum):
    """How far a request came."""

    TLS = "tls"
    HEAD = "head"
    POLICY = "policy"
    RESOLVE = "resolve"
    TUNNEL = "tunnel"
    DIAL = "dial"


@dataclass(frozen=True, slots=True)
class Failure:
    """`result` is a short fixed word to count by; `words` are for the person in front of kubectl."""

    status: int
    stage: Stage
    result: str
    words: str


class Denied(Exception):
    """Internal: this connection gets no tunnel."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.words)
        self.failure = failure


def bad_request(words: str) -> Failure:
    return Failure(400, Stage.HEAD, "bad-request", words)


def not_connect(method: str) -> Failure:
    return Failure(405, Stage.HEAD, "method", f"only CONNECT is served here, not {method[:16]}")


def forbidden(result: str, words: str) -> Failure:
    return Failure(403, Stage.POLICY, result, words)


def at_capacity(limit: int) -> Failure:
    return Failure(503, Stage.HEAD, "capacity", f"at capacity: {limit} connections are open")


def tunnel_down(words: str) -> Failure:
    return Failure(503, Stage.TUNNEL, "tunnel-down", f"tunnel down: {words}")


def reply(failure: Failure) -> bytes:
    """The whole answer; the connection ends behind it."""
    return f"HTTP/1.1 {failure.status} {reason(failure.words)}\r\n\r\n".encode("ascii")


def reason(words: str) -> str:
    """Words as a reason phrase (RFC 9112 section 4)."""
    clean = "".join(c if " " <= c <= "~" else "?" for c in words[: REASON_MAX + 1]).strip() or "no reason given"
    return clean if len(clean) <= REASON_MAX else clean[: REASON_MAX - 3] + "..."
