"""What a seed server knows besides its registry."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from agent.carrier.api import Stats, Turned, Up
from agent.engine import Pass
from agent.identity import Identity
from agent.messages import Credential
from seed_server.audit import Journal

#: What the next grant on this stream of this client brings, of the streams that are up.
Renew = Callable[[Identity, Up, Collection[int]], Credential | None]


@dataclass(slots=True)
class Live:
    """Streams, and counts for the metrics. `renew` is there where clients have credentials of this server's."""

    streams: dict[int, tuple[Identity, Up]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # prefixes, by reason
    not_let_in: Counter[str] = field(default_factory=Counter)  # enrolls turned down, by reason
    turned_away: Counter[str] = field(default_factory=Counter)  # connections, by cause
    steps: Counter[str] = field(default_factory=Counter)  # applied by the engine, by kind
    last_turned_away: str = ""
    stats: Stats | None = None
    last_pass: Pass | None = None
    renew: Renew | None = None

    def credential(self, identity: Identity, stream: int) -> Credential | None:
        """A newer credential for a client, when it is time for one."""
        _, up = self.streams.get(stream, (None, None))
        return self.renew(identity, up, self.streams.keys()) if self.renew is not None and up is not None else None

    def turn_away(self, event: Turned, journal: Journal) -> None:
        """The carrier says whom it turned away, counted since its start: what is new is noted."""
        counts = Counter(dict(event.counts))
        for cause, count in sorted((counts - self.turned_away).items()):
            words = f"{count} connections turned away: {cause}; the last of all: {event.last_detail}"
            journal.note(logging.DEBUG, "connection.turned_away", words, reason=cause, count=count)
        self.turned_away = counts
        self.last_turned_away = event.last_detail
