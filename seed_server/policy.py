"""What a control plane declared, and what of a client's offer it allows. Pure.

Each prefix is held against what was declared and against what other clients hold; everything else is refused with a word that is
counted and a sentence that is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agent.identity import Identity, Role
from agent.messages import Offer
from agent.model import IPNetwork
from seed_server.access import Access, reach
from seed_server.assignment import PART_BITS, parts_within
from seed_server.claims import Claims

#: Why a prefix is refused; metrics have these from the start (agent.metrics.PREFIX_REASONS).
Reason = Literal["default-route", "not-a-host", "outside", "protected", "role", "taken", "too-small"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What this control plane declared. `protected` pairs a prefix with where it comes from, for the refusal's sentence.
    `shared_nodes`: a client may offer to reach all nodes, which counts for those that have no client of their own.
    `no_sidecars` is why no sidecar can be served here, empty when they can; `no_once` why none can be kept without its daemon.
    `silence_s` is how long one of those may be without a handshake."""

    control_plane: str
    nodes: tuple[IPNetwork, ...]
    pods: tuple[IPNetwork, ...]
    services: tuple[IPNetwork, ...]
    protected: tuple[tuple[IPNetwork, str], ...]
    lifetime_s: float
    roles: frozenset[Role] = frozenset({Role.SHOOT_CLIENT, Role.SIDECAR})
    shared_nodes: bool = False
    access: tuple[Access, ...] = ()
    no_sidecars: str = ""
    no_once: str = "this server keeps no sidecar without its daemon"
    silence_s: float = 3600.0

    def declared(self, kind: str) -> tuple[IPNetwork, ...]:
        return {"nodes": self.nodes, "pods": self.pods, "services": self.services}[kind]

    def ranges(self) -> tuple[IPNetwork, ...]:
        return self.nodes + self.pods + self.services

    def reach(self, identity: Identity) -> tuple[IPNetwork, ...] | None:
        """The ranges to which this identity may open connections; None for a sidecar that no rule names."""
        if identity.role is not Role.SIDECAR:
            return ()
        return reach(
            self.access, identity.name, (("nodes", self.nodes), ("pods", self.pods), ("services", self.services))
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """One prefix that was not accepted. `reason` is one of a few fixed words (a metric label)."""

    prefix: IPNetwork
    reason: Reason
    text: str


def judge(
    claims: Claims, policy: Policy, identity: Identity, offer: Offer
) -> tuple[tuple[IPNetwork, ...], tuple[IPNetwork, ...], tuple[Refusal, ...]]:
    """What of an offer a client carries alone, what it could carry in turn with others, and what is refused. `claims` are the
    prefixes that clients carry alone."""
    own: list[IPNetwork] = []
    shared: list[IPNetwork] = []
    refused: list[Refusal] = []
    for kind, prefix in _kinds(offer):
        if identity.role is not Role.SHOOT_CLIENT:
            refused.append(Refusal(prefix, "role", f"{prefix}: a {identity.role.value} carries nothing"))
            continue
        may_share = _may_share(policy, kind, prefix)
        refusal = _refusal(policy, kind, prefix, may_share)
        refusal = refusal or (None if may_share else _taken(claims, identity, prefix))
        if refusal is not None:
            refused.append(refusal)
        elif may_share:
            shared.append(prefix)
        elif prefix not in own:
            own.append(prefix)
    return tuple(own), tuple(dict.fromkeys(shared)), tuple(refused)


def _kinds(offer: Offer) -> Iterator[tuple[str, IPNetwork]]:
    for kind, prefixes in (("nodes", offer.nodes), ("pods", offer.pods), ("services", offer.services)):
        for prefix in prefixes:
            yield kind, prefix


def _may_share(policy: Policy, kind: str, prefix: IPNetwork) -> bool:
    """What no node owns: services; whole pod ranges, and whole node ranges where that is allowed. What nodes own in those is
    a longer prefix and wins."""
    if kind == "nodes":
        return policy.shared_nodes and prefix in policy.nodes and prefix.prefixlen < prefix.max_prefixlen
    return kind == "services" or prefix in policy.pods


def _refusal(policy: Policy, kind: str, prefix: IPNetwork, may_share: bool) -> Refusal | None:
    if prefix.prefixlen == 0:
        return Refusal(prefix, "default-route", f"{prefix} is a default route")
    for network, origin in policy.protected:
        if prefix.version == network.version and prefix.overlaps(network):
            return Refusal(prefix, "protected", f"{prefix} overlaps {network} ({origin})")
    within = [n for n in policy.declared(kind) if n.version == prefix.version and prefix.subnet_of(n)]  # type: ignore[arg-type]
    if not within:
        declared = ", ".join(map(str, policy.declared(kind))) or "none"
        return Refusal(prefix, "outside", f"{prefix} is not within the declared {kind} ranges ({declared})")
    if kind == "nodes" and not may_share and prefix.prefixlen != prefix.max_prefixlen:
        hint = " (or all of a node range, where `shared_nodes` allows it)" if prefix in policy.nodes else ""
        return Refusal(prefix, "not-a-host", f"{prefix}: a node's address is a /{prefix.max_prefixlen}{hint}")
    if may_share and not any(parts_within(network, prefix) for network in within):
        text = f"{prefix} is less than a {2**PART_BITS}th of {within[0]}: offer the range, or larger parts of it"
        return Refusal(prefix, "too-small", text)
    return None


def _taken(claims: Claims, identity: Identity, prefix: IPNetwork) -> Refusal | None:
    other = claims.overlap(prefix, identity)
    if other is None:
        return None
    return Refusal(prefix, "taken", f"{prefix} overlaps {other[0]}, which {other[1]} carries")
