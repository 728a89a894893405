"""The error taxonomy. Every error answers one question for its caller: is it worth trying again, and when?

Third-party exceptions are translated into these once, in the shell module that imports the library, `raise ... from exc`.
A message says what failed, why, and what to do next; it never contains key material.
"""

from __future__ import annotations

from enum import Enum


class Retry(Enum):
    NEVER = "never"  #: the same call cannot succeed until somebody changes something
    NOW = "now"  #: look again and call again at once (a lost race)
    BACKOFF = "backoff"  #: call again later


class RhizomeError(Exception):
    """Root of all errors that Rhizome raises on purpose."""

    retry: Retry = Retry.BACKOFF
    exit_code: int = 1


class ConfigError(RhizomeError):
    """The configuration cannot work. Lists every problem found, one per line in `problems`."""

    retry = Retry.NEVER
    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Unsupported(RhizomeError):
    """This host lacks something (WireGuard, /dev/net/tun, CAP_NET_ADMIN, a program)."""

    retry = Retry.NEVER
    exit_code = 3


class HostError(RhizomeError):
    """The operating system refused a step. `errno` is positive, or 0 where there is none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class RemoteError(RhizomeError):
    """The other side, or a proxy on the way, broke a rule or refused us."""


class BadMessage(RemoteError):
    """Bytes from the network that are not what the protocol allows. The stream they came on is closed."""


class Refused(RemoteError):
    """The server refused this client in words; retry is NEVER unless it said otherwise."""

    def __init__(self, reason: str, message: str, retry: Retry = Retry.NEVER) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.retry = retry


class StoreError(RhizomeError):
    """The address store is unavailable or unreadable; nothing was changed."""


class Conflict(StoreError):
    """Somebody else wrote first (compare-and-swap lost). Read again and decide again."""

    retry = Retry.NOW


class PoolExhausted(StoreError):
    """No free address is left; existing owners keep theirs."""

    retry = Retry.NEVER
