"""What of the shoot can be reached just now, for those who dial it. Pure; times are monotonic seconds.

A client has a fault when it is lost, and not before: until its first answer, and for a moment after its stream broke, it is
given the benefit of the doubt. A dial that waits a second is better than one that was refused for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model import IPNetwork
from agent.pulse import Cause, Pulse, Standing
from seed_server.adopted import awaited
from seed_server.desired import Carries
from seed_server.registry import Registry


@dataclass(frozen=True, slots=True)
class Carrier:
    """Who carries these prefixes; `fault` is why no packet gets through, since `since`, empty for none."""

    prefixes: tuple[IPNetwork, ...]
    fault: str = ""
    since: float = 0.0


def carriers(registry: Registry, carries: Carries, pulses: Mapping[str, Pulse]) -> dict[str, Carrier]:
    """By a name that is stable. `pulses` by identity text. Peers that a restarted server found on its device count as well
    until their clients are back: they lose no packet."""
    found: dict[str, Carrier] = {}
    for key, client in registry.clients.items():
        if prefixes := carries.get(key):
            fault, since = _fault(client.identity.name, pulses[key])
            found[key] = Carrier(prefixes, fault, since)
    for peer in awaited(registry):
        found[f"adopted {peer.public_key}"] = Carrier(tuple(sorted(peer.allowed_ips, key=str)))
    return found


def _fault(name: str, pulse: Pulse) -> tuple[str, float]:
    if pulse.standing is not Standing.LOST:
        return "", 0.0
    if pulse.cause is Cause.STREAM:
        return f"{name} has no stream", pulse.since if pulse.stream_lost_at is None else pulse.stream_lost_at
    if pulse.answered_at is not None:
        return f"{name} has not answered", pulse.answered_at
    return f"{name} has not answered yet, and has been asked", pulse.missing_since
