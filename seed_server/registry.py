"""Who is in, with what, until when. Pure: admission is a function of the registry, the policy and the request.

The shoot is hostile. A client states what it could carry; here each prefix is held against what the control plane declared
and against what other clients hold, and everything else is refused with a word that is counted and a sentence that is shown.
Identity comes from the certificate, never from the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from agent.identity import Identity, Role
from agent.messages import VERSION_MAX, VERSION_MIN, Enroll, Offer, Refuse
from agent.model import IPAddress, IPNetwork, Peer, PresharedKey, PublicKey
from seed_server.assignment import assign
from seed_server.claims import Claims

STREAM = "stream"  # the name of the device whose packets travel on the stream


@dataclass(frozen=True, slots=True)
class Policy:
    """What this control plane declared. `protected` pairs a prefix with where it comes from, for the refusal's sentence."""

    control_plane: str
    nodes: tuple[IPNetwork, ...]
    pods: tuple[IPNetwork, ...]
    services: tuple[IPNetwork, ...]
    protected: tuple[tuple[IPNetwork, str], ...]
    lifetime_s: float
    roles: frozenset[Role] = frozenset({Role.SHOOT_CLIENT})

    def declared(self, kind: str) -> tuple[IPNetwork, ...]:
        return {"nodes": self.nodes, "pods": self.pods, "services": self.services}[kind]

    def ranges(self) -> tuple[IPNetwork, ...]:
        return self.nodes + self.pods + self.services


@dataclass(frozen=True, slots=True)
class Refusal:
    """One prefix that was not accepted. `reason` is one of a few fixed words (a metric label)."""

    prefix: IPNetwork
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Client:
    """One admitted client. `own` it carries alone; `shared` it could carry, assignment decides. Times are monotonic."""

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


@dataclass(frozen=True, slots=True)
class Registry:
    """`clients` by identity text. `adopted` are peers found on the device at start, kept until `adopted_until` so that a
    restarted server interrupts nobody; a client that enrols again takes its place."""

    clients: Mapping[str, Client] = field(default_factory=lambda: MappingProxyType({}))
    claims: Claims = field(default_factory=Claims)  # the `own` prefixes of all clients
    adopted: tuple[Peer, ...] = ()
    adopted_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Admitted:
    registry: Registry
    client: Client


def precheck(
    registry: Registry, policy: Policy, server_key: PublicKey, identity: Identity, enroll: Enroll
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
    key = dict(enroll.public_keys).get(STREAM)
    if key is None:
        return Refuse("key", f"no public key for the device {STREAM!r}")
    if key == server_key:
        return Refuse("key", "this public key is the server's own")
    holder = next((c for c in registry.clients.values() if c.public_key == key and c.identity != identity), None)
    if holder is not None:
        return Refuse(
            "key",
            f"this public key is held by {holder.identity}: every client needs a key of its own",
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
) -> Admitted:
    """Take the client in (again). `addresses` are committed in the IPAM; a client that is in keeps its preshared key."""
    key = dict(enroll.public_keys)[STREAM]
    before = registry.clients.get(str(identity))
    if before is not None and before.public_key == key:
        preshared_key = before.preshared_key
    own, shared, refused = _judge(registry, policy, identity, enroll.offer)
    client = Client(
        identity=identity,
        public_key=key,
        addresses=addresses,
        own=own,
        shared=shared,
        refused=refused,
        preshared_key=preshared_key,
        expires_at=now + policy.lifetime_s,
        stream=stream,
        software=enroll.software,
    )
    return Admitted(_with(registry, client), client)


def update_offer(registry: Registry, policy: Policy, identity: Identity, offer: Offer) -> Admitted | None:
    """The client's facts changed. None: it is not in."""
    before = registry.clients.get(str(identity))
    if before is None:
        return None
    own, shared, refused = _judge(registry, policy, identity, offer)
    client = replace(before, own=own, shared=shared, refused=refused)
    return Admitted(_with(registry, client), client)


def stream_down(registry: Registry, stream: int, now: float) -> Registry:
    """The client stays in until its grant ends; what it shares moves to others meanwhile."""
    for client in registry.clients.values():
        if client.stream == stream:
            return _with(registry, replace(client, stream=None, stream_lost_at=now))
    return registry


def expire(registry: Registry, now: float) -> Registry:
    """Without those whose grants ended, and without adopted peers that nobody claimed in time."""
    ended = [c for c in registry.clients.values() if c.expires_at <= now]
    adopted = registry.adopted if now < registry.adopted_until else ()
    if not ended and adopted == registry.adopted:
        return registry
    return replace(without(registry, ended), adopted=adopted)


def without(registry: Registry, gone: Iterable[Client]) -> Registry:
    """The registry after these clients left; their addresses stay theirs in the IPAM."""
    claims = registry.claims
    clients = dict(registry.clients)
    for client in gone:
        claims = claims.replace(client.identity, ())
        clients.pop(str(client.identity), None)
    return replace(registry, clients=MappingProxyType(clients), claims=claims)


def next_expiry(registry: Registry) -> float | None:
    times = [c.expires_at for c in registry.clients.values()] + ([registry.adopted_until] if registry.adopted else [])
    return min(times, default=None)


def carried(registry: Registry, now: float, patience_s: float = 2.0) -> dict[str, tuple[IPNetwork, ...]]:
    """Identity text -> prefixes that this client carries now, its own addresses not included. One owner per prefix.

    Shared prefixes go to clients with a live stream (or one lost less than `patience_s` ago); if there is none, to any.
    """
    live = {
        key: c.shared
        for key, c in registry.clients.items()
        if c.stream is not None or (c.stream_lost_at is not None and now - c.stream_lost_at < patience_s)
    }
    owners = assign({key: c.shared for key, c in registry.clients.items()}) | assign(live)
    return {
        key: c.own + tuple(prefix for prefix in c.shared if owners[prefix] == key)
        for key, c in registry.clients.items()
    }


def _with(registry: Registry, client: Client) -> Registry:
    clients = {**registry.clients, str(client.identity): client}
    before = registry.clients.get(str(client.identity))
    unchanged = before is not None and before.own == client.own
    claims = registry.claims if unchanged else registry.claims.replace(client.identity, client.own)
    return replace(registry, clients=MappingProxyType(clients), claims=claims)


def _judge(
    registry: Registry, policy: Policy, identity: Identity, offer: Offer
) -> tuple[tuple[IPNetwork, ...], tuple[IPNetwork, ...], tuple[Refusal, ...]]:
    own: list[IPNetwork] = []
    shared: list[IPNetwork] = []
    refused: list[Refusal] = []
    for kind, prefix in _kinds(offer):
        may_share = kind == "services" or (kind == "pods" and prefix in policy.pods)  # longest prefix wins over it
        refusal = _refusal(policy, kind, prefix) or (None if may_share else _taken(registry.claims, identity, prefix))
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


def _refusal(policy: Policy, kind: str, prefix: IPNetwork) -> Refusal | None:
    if prefix.prefixlen == 0:
        return Refusal(prefix, "default-route", f"{prefix} is a default route")
    for network, origin in policy.protected:
        if prefix.version == network.version and prefix.overlaps(network):
            return Refusal(prefix, "protected", f"{prefix} overlaps {network} ({origin})")
    if not any(n.version == prefix.version and prefix.subnet_of(n) for n in policy.declared(kind)):  # type: ignore[arg-type]
        declared = ", ".join(map(str, policy.declared(kind))) or "none"
        return Refusal(prefix, "outside", f"{prefix} is not within the declared {kind} ranges ({declared})")
    if kind == "nodes" and prefix.prefixlen != prefix.max_prefixlen:
        return Refusal(prefix, "not-a-host", f"{prefix}: a node's address is a /{prefix.max_prefixlen}")
    return None


def _taken(claims: Claims, identity: Identity, prefix: IPNetwork) -> Refusal | None:
    other = claims.overlap(prefix, identity)
    if other is None:
        return None
    return Refusal(prefix, "taken", f"{prefix} overlaps {other[0]}, which {other[1]} carries")
