"""A client's session with its server, sans-IO: what to say, what it was granted, when to look again.

Inputs are events with the time they happened (`now`, monotonic seconds); outputs are commands for the carrier. The
session survives its streams: a grant stays valid while the carrier reconnects, and ends when its lifetime ends.

    DOWN --up--> ENROLLING --grant--> JOINED --half of the lifetime--> (enrol again on the same stream)
      ^             |  refuse, or no answer       |
      +--down-------+-----------down--------------+        a grant that runs out is withdrawn in any state
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from agent.carrier.api import Close, Command, Redial, Send
from agent.errors import BadMessage
from agent.messages import Drain, Enroll, Facts, Grant, Offer, Refuse, encode, parse
from agent.model import PublicKey

ANSWER_TIMEOUT_S = 5.0  # the server answers an enroll at once; a proxy in between may be slow
ENROLLS_MAX = 3  # unanswered on one stream before another stream is tried
RENEW_MIN_S = 2.0  # a grant that ends with a credential gets shorter each time it is renewed
SHORT_SHARE = 0.15  # a grant of less than so much of the longest one is about to end with our credential
SETTLED_S = 3.0  # and a newer credential is shown within this, if there is one
REFUSED_RETRY_S = 60.0  # after a refusal that names no time: a person has to act, but perhaps on the server's side


class State(Enum):
    DOWN = "down"  #: no stream
    ENROLLING = "enrolling"  #: a stream, no answer yet
    JOINED = "joined"  #: a stream and a grant that was given on it
    REFUSED = "refused"  #: the server said no; see `Session.refusal`


@dataclass(slots=True)
class Session:
    """Mutable, small, and without any I/O. `kicks` counts, by path, the times that the server's device was found to be a
    new one with an old key: whoever owns the device removes the peer once per kick, so that WireGuard handshakes at once.
    `path` is the device that we send by, empty for a client that has only one; `once`: we are going to leave; `standby`: we send by the device of another session;
    `granted_at` is when the grant came, `ended` the last one that was withdrawn."""

    public_keys: tuple[tuple[str, PublicKey], ...]
    offer: Offer
    software: str = ""
    state: State = State.DOWN
    stream: int | None = None
    grant: Grant | None = None
    ended: Grant | None = None
    refusal: Refuse | None = None
    kicks: Counter[str] = field(default_factory=Counter)
    path: str = ""
    process: str = ""
    once: bool = False
    standby: bool = False
    granted_at: float | None = None
    _expires_at: float = 0.0
    _renew_at: float = 0.0
    _short_since: float | None = None
    _longest_s: float = 0.0
    _answer_by: float | None = None
    _asked: int = field(default=0)

    def on_up(self, stream: int, replay: tuple[str, ...], now: float) -> tuple[Command, ...]:
        """A stream is up. `replay` is what an adopted carrier already heard on it: an earlier grant keeps traffic flowing."""
        self.stream = stream
        self.state = State.ENROLLING
        self._asked = 0
        if self.grant is None:
            for text in replay:
                message = _parse_or_none(text)
                if isinstance(message, Grant):
                    self._accept(message, now)
                    self.state = State.ENROLLING
        return self._enroll(now)

    def on_down(self, stream: int) -> None:
        if stream == self.stream:
            self.stream = None
            self._answer_by = None
            if self.state is not State.REFUSED:
                self.state = State.DOWN

    def on_message(self, stream: int, text: str, now: float) -> tuple[Command, ...]:
        """Never raises: a message that breaks the rules costs the server this stream."""
        if stream != self.stream:
            return ()
        try:
            message = parse(text)
        except BadMessage as exc:
            return (Close(stream, str(exc), retry_in_s=1.0),)
        if isinstance(message, Grant):
            self._accept(message, now)
        elif isinstance(message, Refuse):
            return self._refused(stream, message)
        elif isinstance(message, Drain):
            return (Redial(),)
        return ()

    def set_offer(self, offer: Offer) -> tuple[Command, ...]:
        """The node changed. Told at once if there is a stream, with the next enroll otherwise."""
        if offer == self.offer:
            return ()
        self.offer = offer
        return self._facts()

    def set_path(self, path: str) -> tuple[Command, ...]:
        """We send by another device now, and want to be answered by it."""
        if path == self.path:
            return ()
        self.path = path
        return self._facts()

    def set_standby(self, standby: bool) -> tuple[Command, ...]:
        """We send by this session's device from now on, or by another one's."""
        if standby == self.standby:
            return ()
        self.standby = standby
        return self._facts()

    def _facts(self) -> tuple[Command, ...]:
        facts = Facts(self.offer, self.path, standby=self.standby)
        return (Send(self.stream, encode(facts)),) if self.stream is not None else ()

    def set_public_keys(self, public_keys: tuple[tuple[str, PublicKey], ...], now: float) -> tuple[Command, ...]:
        """The device has another key (it was made anew): the server must know before a handshake can work."""
        if public_keys == self.public_keys:
            return ()
        self.public_keys = public_keys
        return self._enroll(now) if self.stream is not None else ()

    def tick(self, now: float) -> tuple[Command, ...]:
        """Do what is due. Call at `next_wakeup()` or later."""
        if self.grant is not None and now >= self._expires_at:
            self._withdraw()
        if self.stream is None:
            return ()
        if self._answer_by is not None and now >= self._answer_by:
            if self._asked >= ENROLLS_MAX:
                stream, self._answer_by = self.stream, None
                return (Close(stream, "the server does not answer an enroll"),)
            return self._enroll(now)
        if self.grant is not None and self._answer_by is None and now >= self._renew_at:
            self._asked = 0
            return self._enroll(now)
        return ()

    def next_wakeup(self) -> float | None:
        """When `tick` has something to do; None: only an event can change anything."""
        times = [self._expires_at] if self.grant is not None else []
        if self.stream is not None:
            times += (
                [self._answer_by] if self._answer_by is not None else [self._renew_at] if self.grant is not None else []
            )
        return min(times) if times else None

    def expires_in_s(self, now: float) -> float | None:
        """How long the grant still lasts; None without a grant."""
        return max(0.0, self._expires_at - now) if self.grant is not None else None

    def unrenewed_s(self, now: float) -> float | None:
        """How long the grant lasts when it should have been renewed by now, or was renewed for very little, as our credential
        ends; None when there is nothing to worry about."""
        if self.grant is None:
            return None
        overdue = now > self._renew_at + ANSWER_TIMEOUT_S
        short = self._short_since is not None and now > self._short_since + SETTLED_S
        return self.expires_in_s(now) if overdue or short else None

    def _enroll(self, now: float) -> tuple[Command, ...]:
        assert self.stream is not None
        self._asked += 1
        self._answer_by = now + ANSWER_TIMEOUT_S
        return (Send(self.stream, encode(self._enrollment())),)

    def _enrollment(self) -> Enroll:
        return Enroll(
            self.public_keys,
            self.offer,
            software=self.software,
            path=self.path,
            process=self.process,
            once=self.once,
            standby=self.standby,
        )

    def _accept(self, grant: Grant, now: float) -> None:
        old = self.grant
        before = old.incarnations() if old is not None else {}
        for path, (key, epoch) in grant.incarnations().items():
            if path in before and before[path][0] == key and before[path][1] != epoch:
                self.kicks[path] += 1
        self.grant = grant
        self.refusal = None
        self.state = State.JOINED
        self._answer_by = None
        self._asked = 0
        self._longest_s = max(self._longest_s, grant.lifetime_s)
        is_short = grant.lifetime_s < self._longest_s * SHORT_SHARE
        self._short_since = (self._short_since or now) if is_short else None
        self._expires_at = now + grant.lifetime_s
        self.granted_at = now
        self._renew_at = now + max(grant.lifetime_s / 2, RENEW_MIN_S)

    def _withdraw(self) -> None:
        self.ended, self.grant = self.grant or self.ended, None

    def _refused(self, stream: int, refuse: Refuse) -> tuple[Command, ...]:
        """The grant ends with the refusal: the server has no such peer any more."""
        self.refusal = refuse
        self._withdraw()
        self.state = State.REFUSED
        self._answer_by = None
        retry_in_s = REFUSED_RETRY_S if refuse.retry_after_s is None else refuse.retry_after_s
        return (Close(stream, f"refused: {refuse.reason}", retry_in_s),)


def _parse_or_none(text: str) -> object:
    try:
        return parse(text)
    except BadMessage:
        return None
