"""Verdicts: is the tunnel up, and if not, what is the one cause. Pure; every age is given, nobody reads a clock here.

Up means that packets cross: a canary through the tunnel came back a moment ago. A WireGuard handshake proves less (it is
good for three minutes) and an established stream proves less still; they only serve to find the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.status import PeerHealth, RangeHealth, Verdict

# WireGuard's timers in seconds (whitepaper section 6.1, table of constants).
REKEY_AFTER_TIME_S = 120.0  # section 6.2: the initiator of a session makes a new one after this
REJECT_AFTER_TIME_S = 180.0  # section 6.2: a session older than this carries nothing any more
REKEY_ATTEMPT_TIME_S = 90.0  # section 6.4: how long an unanswered handshake is tried again
REKEY_TIMEOUT_S = 5.0  # section 6.4: and how often
KEEPALIVE_TIMEOUT_S = 10.0  # section 6.5: who received and has nothing to send says so after this

#: A canary answered within this means that packets cross: it goes out every second, so three lost in a row are tolerated.
CANARY_FRESH_S = 4.0

#: How the cause begins that names identities which are at work in two places.
FENCED = "at work in two places, and kept out"

_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """`sentence` says what is, in one line; `causes` say why, the root cause first; empty when all is well."""

    verdict: Verdict
    sentence: str
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Since:
    """A verdict and the monotonic time at which it began."""

    verdict: Verdict
    at: float

    def update(self, verdict: Verdict, now: float) -> Since:
        return self if verdict is self.verdict else Since(verdict, now)


def canary_is_fresh(age_s: float | None) -> bool:
    """None: no canary has ever been answered."""
    return age_s is not None and age_s < CANARY_FRESH_S


def session_is_alive(handshake_age_s: float | None) -> bool:
    """Whether WireGuard still has a session that it would use. None: there was no handshake."""
    return handshake_age_s is not None and handshake_age_s < REJECT_AFTER_TIME_S


@dataclass(frozen=True, slots=True)
class ClientView:
    """What a client knows of its own tunnel. Ages in seconds, None for never. An empty text means: no such trouble.

    `stream` is why there is no stream ("proxy: 407 Proxy Authentication Required"), `refusal` the server's words,
    `host` why the host could not be made as desired, `beyond` what else is wrong on this host while packets cross, such as what
    stops them behind the tunnel.
    `unrenewed_s` is how long the grant lasts that cannot be renewed, None while it can.
    """

    stream_up: bool
    granted: bool
    canary_age_s: float | None = None
    handshake_age_s: float | None = None
    stream: str = ""
    refusal: str = ""
    host: str = ""
    unrenewed_s: float | None = None
    beyond: str = ""


def judge_client(view: ClientView) -> Judgement:
    """The verdict of a shoot client or a sidecar about its way to the server."""
    crossing = canary_is_fresh(view.canary_age_s)
    cause = _client_cause(view, crossing)
    if not cause:
        return Judgement(Verdict.UP, "packets cross the tunnel in both directions")
    if crossing:
        return Judgement(Verdict.DEGRADED, f"packets cross the tunnel, but {cause}", (cause,))
    return Judgement(Verdict.DOWN, f"no packet crosses the tunnel: {cause}", (cause,))


def _client_cause(view: ClientView, crossing: bool) -> str:
    """The first broken link of the chain host, stream, grant, handshake, canary; what follows from it is not told."""
    if view.host:
        return f"this host cannot be set up: {view.host}"
    if view.refusal and not view.stream:
        return f"the server refused us: {view.refusal}"
    if not view.stream_up:
        return f"there is no stream to the server ({view.stream or 'dialling'}){_ends(view, '; the grant')}"
    if view.refusal:
        return f"the server refused us: {view.refusal}"
    if not view.granted:
        return "the server has not granted us anything yet"
    if crossing:
        return _ends(view, "the grant cannot be renewed and") or view.beyond
    if not session_is_alive(view.handshake_age_s):
        return f"the stream is up, but WireGuard does not shake hands ({_ago('last', view.handshake_age_s)})"
    return (
        f"WireGuard has a session, but no canary comes through ({_ago('last', view.canary_age_s)}): "
        "look for a firewall, a route or an MTU in the way"
    )


def _ends(view: ClientView, what: str) -> str:
    return f"{what} ends in {duration(view.unrenewed_s)}" if view.unrenewed_s is not None else ""


def judge_server(
    peers: Sequence[PeerHealth],
    ranges: Sequence[RangeHealth],
    *,
    host: str = "",
    turned_away: str = "",
    fenced: Sequence[str] = (),
) -> Judgement:
    """The verdict of a seed server about the way to the shoot.

    `host` is why the host could not be made as desired, `turned_away` the last client that was not let in and why, `fenced`
    the identities that are kept out because they are at work in two places.
    """
    silent = [peer for peer in peers if not canary_is_fresh(peer.canary_age_s)]
    answering = len(peers) - len(silent)
    causes: list[str] = []
    if host:
        causes.append(f"this host cannot be set up: {host}")
    elif not peers:
        causes.append(
            f"no client is connected; the last one was turned away: {turned_away}"
            if turned_away
            else "no client is connected"
        )
    elif silent:
        named = [f"{peer.name} ({_ago('last answer', peer.canary_age_s)})" for peer in silent]
        causes.append(f"{_of(len(silent), len(peers), 'client')} without an answer: {_some(named)}")
    if fenced:
        causes.append(f"{FENCED}: {_some(fenced)}")
    uncarried = [item.prefix for item in ranges if not item.carrier]
    if peers and uncarried:
        causes.append(f"{_of(len(uncarried), len(ranges), 'range')} carried by no client: {_some(uncarried)}")
    if not answering:
        return Judgement(Verdict.DOWN, f"the shoot cannot be reached: {causes[0]}", tuple(causes))
    reach = f"the shoot is reached through {_of(answering, len(peers), 'client')}"
    if causes:
        return Judgement(Verdict.DEGRADED, f"{reach}, but {causes[0]}", tuple(causes))
    return Judgement(Verdict.UP, reach)


def _ago(word: str, age_s: float | None) -> str:
    return f"{word} {duration(age_s)} ago" if age_s is not None else f"{word}: never"


def _of(part: int, whole: int, noun: str) -> str:
    return f"{part} of {whole} {noun}{'' if whole == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def duration(seconds: float) -> str:
    """A length of time as people say it: 0.4s, 12s, 3m05s, 2h10m, 5d03h."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = int(seconds)
    for size, unit, small_size, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small_size:02d}{small}"
    return f"{whole}s"
