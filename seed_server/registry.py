"""Who is in, with what, until when. Pure: admission is a function of the registry, the policy and the request.

The shoot is hostile. A client states what it could carry; here each prefix is held against what the control plane declared
and against what other clients hold, and everything else is refused with a word that is counted and a sentence that is shown.
Identity comes from the certificate, never from the message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from agent.denylist import DenyList
from agent.identity import Identity, Role
from agent.messages import DIRECT, STREAM, VERSION_MAX, VERSION_MIN, Enroll, Facts, Offer, Refuse
from agent.model import IPAddress, IPNetwork, Peer, PresharedKey, PublicKey
from seed_server.access import Access, reach
from seed_server.assignment import PART_BITS, parts_within
from seed_server.claims import Claims

K = TypeVar("K")
V = TypeVar("V")


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
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Once:
    """What there is of a client that has configured its host and left: nothing but a device. `not_after` is when what proved
    its identity ends, as time of day, `ends_at` the same in monotonic time; `handshake` is WireGuard's time of the last one that
    was seen, None for none."""

    not_after: float
    ends_at: float
    handshake: float | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """One admitted client. `own` it carries alone; `shared` it could carry, assignment decides; `routes` it may reach, which
    only a sidecar has. `direct_key` is that of its second device, None for none, and `path` the device that it sends by
    and wants to be answered by. `once`: it has that device alone, and `public_key` is its key too. Times are monotonic."""

    identity: Identity
    public_key: PublicKey
    addresses: tuple[IPAddress, ...]
    own: tuple[IPNetwork, ...]
    shared: tuple[IPNetwork, ...]
    refused: tuple[Refusal, ...]
    preshared_key: PresharedKey
    expires_at: float
    stream: int | None
    stream_lost_at: float | None = None
    software: str = ""
    routes: tuple[IPNetwork, ...] = ()
    direct_key: PublicKey | None = None
    path: str = ""
    preshared_since: float = 0.0
    once: Once | None = None

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        return (self.public_key,) if self.direct_key in (None, self.public_key) else (self.public_key, self.direct_key)


@dataclass(frozen=True, slots=True)
class Registry:
    """`clients` by identity text, `holders` is who has which public key. `adopted` are peers found on the device at start,
    kept until `adopted_until` so that a restarted server interrupts nobody; a client that enrols again takes its place.
    `known` is which sidecar had which address then, as the IPAM says; `adopted_direct` are the peers of the second device,
    and `direct_routes` the addresses that were answered by it."""

    clients: Mapping[str, Client] = field(default_factory=lambda: MappingProxyType({}))
    holders: Mapping[PublicKey, str] = field(default_factory=lambda: MappingProxyType({}))
    claims: Claims = field(default_factory=Claims)  # the `own` prefixes of all clients
    adopted: tuple[Peer, ...] = ()
    adopted_until: float = 0.0
    adopted_direct: tuple[Peer, ...] = ()
    direct_routes: frozenset[IPNetwork] = frozenset()
    known: Mapping[IPAddress, Identity] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Admitted:
    registry: Registry
    client: Client


def precheck(
    registry: Registry,
    policy: Policy,
    server_keys: frozenset[PublicKey],
    identity: Identity,
    enroll: Enroll,
) -> Refuse | None:
    """All reasons to turn a client away that need no address. None: go on to commit an address, then `admit`."""
    if enroll.version_min > VERSION_MAX or enroll.version_max < VERSION_MIN:
        return Refuse(
            "version",
            f"this server speaks versions {VERSION_MIN} to {VERSION_MAX}, the client {enroll.version_min} to {enroll.version_max}: "
            "upgrade the older of the two",
        )
    if identity.control_plane != policy.control_plane:
        return Refuse(
            "identity", f"the certificate is of control plane {identity.control_plane}, this is {policy.control_plane}"
        )
    if identity.role not in policy.roles:
        allowed = ", ".join(sorted(role.value for role in policy.roles))
        return Refuse("role", f"role {identity.role.value} may not enrol here; allowed: {allowed}")
    if identity.role is Role.SIDECAR and policy.no_sidecars:
        return Refuse("forwarding", policy.no_sidecars)
    if policy.reach(identity) is None:
        return Refuse("access", f"no rule of this server's sidecar_ranges names {identity.name}")
    if enroll.once and identity.role is not Role.SIDECAR:
        return Refuse("role", f"a {identity.role.value} cannot be kept without its daemon")
    if enroll.once and policy.no_once:
        return Refuse("once", policy.no_once)
    return _judge_keys(registry, server_keys, identity, enroll)


def _judge_keys(
    registry: Registry, server_keys: frozenset[PublicKey], identity: Identity, enroll: Enroll
) -> Refuse | None:
    keys = dict(enroll.public_keys)
    if enroll.once and set(keys) != {DIRECT}:
        return Refuse("key", f"who leaves has one device, {DIRECT!r}, and one public key")
    if not enroll.once and STREAM not in keys:
        return Refuse("key", f"no public key for the device {STREAM!r}")
    if STREAM in keys and keys[STREAM] == keys.get(DIRECT):
        return Refuse("key", "both devices have the same public key: each needs a key of its own")
    for key in keys.values():
        if key in server_keys:
            return Refuse("key", "this public key is the server's own")
        holder = registry.holders.get(key, str(identity))
        if holder != str(identity):
            return Refuse(
                "key",
                f"this public key is held by {holder}: every client needs a key of its own",
                retry_after_s=60.0,
            )
    return None


def admit(
    registry: Registry,
    policy: Policy,
    identity: Identity,
    enroll: Enroll,
    addresses: tuple[IPAddress, ...],
    preshared_key: PresharedKey,
    stream: int,
    now: float,
    credential_s: float = math.inf,
    once: Once | None = None,
) -> Admitted:
    """Take the client in (again). `addresses` are committed in the IPAM; a client that is in keeps its preshared key. The
    grant ends with what proved the identity, in `credential_s`. `once` is for those who asked to be kept when they have left."""
    keys = dict(enroll.public_keys)
    key = keys[DIRECT] if once is not None else keys[STREAM]
    before = registry.clients.get(str(identity))
    preshared_since = now
    if before is not None and before.public_key == key:
        preshared_key, preshared_since = before.preshared_key, before.preshared_since
    own, shared, refused = _judge(registry, policy, identity, enroll.offer)
    client = Client(
        identity=identity,
        public_key=key,
        addresses=addresses,
        own=own,
        shared=shared,
        refused=refused,
        preshared_key=preshared_key,
        expires_at=now + min(policy.lifetime_s if once is None else policy.silence_s, credential_s),
        stream=stream,
        software=enroll.software,
        routes=policy.reach(identity) or (),
        direct_key=keys.get(DIRECT) if identity.role is Role.SIDECAR else None,
        path=enroll.path if once is None else DIRECT,
        preshared_since=preshared_since,
        once=once,
    )
    return Admitted(put(registry, client), client)


def update_facts(registry: Registry, policy: Policy, identity: Identity, facts: Facts) -> Admitted | None:
    """The client's facts changed. None: it is not in."""
    before = registry.clients.get(str(identity))
    if before is None or before.once is not None:
        return None
    own, shared, refused = _judge(registry, policy, identity, facts.offer)
    client = replace(before, own=own, shared=shared, refused=refused, path=facts.path)
    return Admitted(put(registry, client), client)


def stream_down(registry: Registry, key: str, stream: int, now: float) -> Registry:
    """The client stays in until its grant ends; what it shares moves to others meanwhile. `key` is its identity's text."""
    client = registry.clients.get(key)
    if client is None or client.stream != stream:
        return registry
    return put(registry, replace(client, stream=None, stream_lost_at=now))


def expire(registry: Registry, now: float) -> Registry:
    """Without those whose grants ended, and without adopted peers that nobody claimed in time."""
    ended = [c for c in registry.clients.values() if c.expires_at <= now]
    late = now >= registry.adopted_until and bool(registry.adopted or registry.adopted_direct)
    if not ended and not late:
        return registry
    registry = without(registry, ended)
    return replace(registry, adopted=(), adopted_direct=()) if late else registry


def without(registry: Registry, gone: Iterable[Client]) -> Registry:
    """The registry after these clients left; their addresses stay theirs in the IPAM."""
    claims = registry.claims
    clients, holders = _copy(registry.clients), _copy(registry.holders)
    for client in gone:
        claims = claims.replace(client.identity, ())
        clients.pop(str(client.identity), None)
        for key in client.keys:
            holders.pop(key, None)
    return replace(registry, clients=MappingProxyType(clients), holders=MappingProxyType(holders), claims=claims)


def without_adopted(registry: Registry, denied: DenyList) -> Registry:
    """Without those of the peers that were found at start and not claimed yet who are denied, by key or by address."""

    def stays(peer: Peer) -> bool:
        holders = {registry.known.get(network.network_address) for network in peer.allowed_ips} - {None}
        return peer.public_key not in denied.keys and denied.identities.isdisjoint(map(str, holders))

    return replace(
        registry,
        adopted=tuple(filter(stays, registry.adopted)),
        adopted_direct=tuple(filter(stays, registry.adopted_direct)),
    )


def next_expiry(registry: Registry) -> float | None:
    times = [c.expires_at for c in registry.clients.values()] + (
        [registry.adopted_until] if registry.adopted or registry.adopted_direct else []
    )
    return min(times, default=None)


def put(registry: Registry, client: Client) -> Registry:
    key = str(client.identity)
    before = registry.clients.get(key)
    clients = _copy(registry.clients)
    clients[key] = client
    holders, claims = registry.holders, registry.claims
    if before is None or before.keys != client.keys:
        others = _copy(holders)
        for held in before.keys if before is not None else ():
            others.pop(held, None)
        others.update(dict.fromkeys(client.keys, key))
        holders = MappingProxyType(others)
    if before is None or before.own != client.own:
        claims = claims.replace(client.identity, client.own)
    return replace(registry, clients=MappingProxyType(clients), holders=holders, claims=claims)


def _copy(mapping: Mapping[K, V]) -> dict[K, V]:
    """As a dict copies itself, without hashing its keys again: 5,000 of them in 30 microseconds."""
    return mapping.copy() if isinstance(mapping, dict | MappingProxyType) else dict(mapping)


def _judge(
    registry: Registry, policy: Policy, identity: Identity, offer: Offer
) -> tuple[tuple[IPNetwork, ...], tuple[IPNetwork, ...], tuple[Refusal, ...]]:
    own: list[IPNetwork] = []
    shared: list[IPNetwork] = []
    refused: list[Refusal] = []
    for kind, prefix in _kinds(offer):
        if identity.role is not Role.SHOOT_CLIENT:
            refused.append(Refusal(prefix, "role", f"{prefix}: a {identity.role.value} carries nothing"))
            continue
        may_share = _may_share(policy, kind, prefix)
        refusal = _refusal(policy, kind, prefix, may_share)
        refusal = refusal or (None if may_share else _taken(registry.claims, identity, prefix))
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
