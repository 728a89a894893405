"""What a seed server knows besides its registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from agent.carrier.api import Stats, Up
from agent.engine import Pass
from agent.identity import Identity
from agent.messages import Credential
from agent.model import PeerStatus

#: What the next grant on this stream of this client brings, of the streams that are up.
Renew = Callable[[Identity, Up, Collection[int]], Credential | None]


@dataclass(slots=True)
class Live:
    """Streams, and counts for the metrics. `renew` is there where clients have credentials of this server's."""

    streams: dict[int, tuple[Identity, Up]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # prefixes and enrolls turned down, by reason
    turned_away: Counter[str] = field(default_factory=Counter)  # connections, by cause
    steps: Counter[str] = field(default_factory=Counter)  # applied by the engine, by kind
    last_turned_away: str = ""
    stats: Stats | None = None
    statuses: tuple[PeerStatus, ...] = ()  # WireGuard's own counters, a few seconds old
    last_pass: Pass | None = None
    renew: Renew | None = None

    def credential(self, identity: Identity, stream: int) -> Credential | None:
        """A newer credential for a client, when it is time for one."""
        _, up = self.streams.get(stream, (None, None))
        return self.renew(identity, up, self.streams.keys()) if self.renew is not None and up is not None else None
