"""Who is kept out although the credential is good: ended, denied, or at work in two places. Pure.

A refusal of one of these kinds also takes away what the client has been granted before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from agent.carrier.api import Up
from agent.denylist import DenyList
from agent.errors import BadMessage
from agent.identity import Identity
from agent.messages import Enroll, Refuse, parse
from agent.model import PublicKey
from seed_server.fence import QUIET_S, Fence
from seed_server.registry import Client

REVOKED, FENCED, CREDENTIAL = "revoked", "fenced", "credential"
#: Reasons that end what was granted.
EXPELS = frozenset({REVOKED, FENCED, CREDENTIAL})
_ASK_AGAIN_S = 60.0


class Warden:
    """`wall` is the time of day, by which credentials end."""

    def __init__(self, wall: Callable[[], float], denied: DenyList | None = None) -> None:
        self.denied = denied or DenyList()
        self.fence = Fence()
        self._wall = wall

    def left_s(self, up: Up | None) -> float:
        """How long the certificate or token that a stream was opened with still lasts."""
        ends_at = up.credential_ends_at if up is not None else None
        return ends_at - self._wall() if ends_at is not None else math.inf

    def at_the_door(self, identity: Identity) -> Refuse | None:
        """What to say to a stream before it has said anything."""
        return _revoked(identity) if self.denied.denies(identity) else None

    def judge(self, up: Up | None, identity: Identity, enroll: Enroll, now: float) -> Refuse | None:
        """What to say to an enroll; None: nothing is held against it. `now` is monotonic."""
        keys = tuple(key for _, key in enroll.public_keys)
        if self.denied.denies(identity, keys):
            return _revoked(identity)
        if self.left_s(up) <= 0:
            return Refuse(CREDENTIAL, "the certificate or token of this stream has ended", retry_after_s=5.0)
        if self.fence.sight(str(identity), enroll.process or " ".join(map(str, keys)), now):
            words = (
                f"{identity} is at work in two places, so both are kept out until only one has been seen for {QUIET_S:g} s: "
                "stop the other one, and revoke the credential if it is not yours"
            )
            return Refuse(FENCED, words, _ASK_AGAIN_S)
        return None

    def expelled(self, client: Client) -> bool:
        """Whether somebody who is in has to go, because the deny list is another one now."""
        return self.denied.denies(client.identity, client.keys)


def _revoked(identity: Identity) -> Refuse:
    return Refuse(
        REVOKED, f"{identity} was revoked: it needs another identity or key, or `rhizome-agent revoke --undo`"
    )


def keys_named(replay: Iterable[str]) -> frozenset[PublicKey]:
    """The WireGuard keys that a client has named on its stream before this daemon attached to it."""
    keys: set[PublicKey] = set()
    for text in replay:
        try:
            message = parse(text)
        except BadMessage:
            continue
        if isinstance(message, Enroll):
            keys.update(key for _, key in message.public_keys)
    return frozenset(keys)
