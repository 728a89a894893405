"""What a seed server knows besides its registry."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from agent.carrier.api import Stats, Up
from agent.engine import Pass
from agent.identity import Identity
from agent.model import PeerStatus


@dataclass(slots=True)
class Live:
    """Streams, and counts for the metrics."""

    streams: dict[int, tuple[Identity, Up]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # prefixes and enrolls turned down, by reason
    turned_away: Counter[str] = field(default_factory=Counter)  # connections, by cause
    steps: Counter[str] = field(default_factory=Counter)  # applied by the engine, by kind
    last_turned_away: str = ""
    stats: Stats | None = None
    statuses: tuple[PeerStatus, ...] = ()  # WireGuard's own counters, a few seconds old
    last_pass: Pass | None = None
