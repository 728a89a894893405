"""What of the shoot can be reached just now, for those who dial it. Pure; times are monotonic seconds.

A client is well as long as its canary answers. Before the first answer, and for a moment after its stream broke, it is given
the benefit of the doubt: a dial that waits a second is better than one that was refused for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.canary import TICK_S, Target
from agent.health import CANARY_FRESH_S, canary_is_fresh
from agent.model import IPNetwork
from seed_server.desired import Carries
from seed_server.registry import Client, Registry

#: A stream that broke is made again within a second, and TCP repeats a lost SYN after one.
STREAM_PATIENCE_S = 2.0
#: Questions that a new client may leave unanswered: it is asked once per TICK_S at first.
UNANSWERED_MAX = round(CANARY_FRESH_S / TICK_S)


@dataclass(frozen=True, slots=True)
class Carrier:
    """Who carries these prefixes; `fault` is why no packet gets through, since `since`, empty for none."""

    prefixes: tuple[IPNetwork, ...]
    fault: str = ""
    since: float = 0.0


def carriers(registry: Registry, carries: Carries, canaries: Mapping[str, Target], now: float) -> dict[str, Carrier]:
    """By a name that is stable. `canaries` by tunnel address. Peers that a restarted server found on its device count as
    well until their clients are back: they lose no packet."""
    found: dict[str, Carrier] = {}
    for key, client in registry.clients.items():
        if prefixes := carries.get(key):
            canary = canaries.get(str(client.addresses[0])) if client.addresses else None
            fault, since = _fault(client, canary, now)
            found[key] = Carrier(prefixes, fault, since)
    claimed = {client.public_key for client in registry.clients.values()}
    for peer in registry.adopted:
        if peer.public_key not in claimed:
            found[f"adopted {peer.public_key}"] = Carrier(tuple(sorted(peer.allowed_ips, key=str)))
    return found


def _fault(client: Client, canary: Target | None, now: float) -> tuple[str, float]:
    name, lost_at = client.identity.name, client.stream_lost_at
    if client.stream is None and lost_at is not None and now - lost_at > STREAM_PATIENCE_S:
        return f"{name} has no stream", lost_at
    if canary is None or canary_is_fresh(canary.age_s(now)):
        return "", 0.0
    if canary.answered_at is not None:
        return f"{name} has not answered", canary.answered_at
    if canary.asked > UNANSWERED_MAX:
        return f"{name} has not answered yet, and has been asked", now - canary.asked * TICK_S
    return "", 0.0
