"""Who is in, with what, until when. Pure: admission is a function of the registry, the policy and the request.

The shoot is hostile. A client states what it could carry; here each prefix is held against what the control plane declared
and against what other clients hold, and everything else is refused with a word that is counted and a sentence that is shown.
Identity comes from the certificate, never from the message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from agent.identity import Identity, Role
from agent.messages import DIRECT, STREAM, VERSION_MAX, VERSION_MIN, Enroll, Facts, Refuse
from agent.model import IPAddress, IPNetwork, Peer, PresharedKey, PublicKey
from seed_server.claims import Claims
from seed_server.policy import Policy, Refusal, judge

#: What a client has at a device that it does not send by is kept for so long without a stream.
LEG_KEPT_S = 5.0

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Once:
    """What there is of a client that has configured its host and left: nothing but a device. `not_after` is when what proved
    its identity ends, as time of day, `ends_at` the same in monotonic time; `handshake` is WireGuard's time of the last one that
    was seen, None for none."""

    not_after: float
    ends_at: float
    handshake: float | None = None


@dataclass(frozen=True, slots=True)
class Leg:
    """What a client has at a device of ours besides the one that it sends by, while keys are replaced: its key there, and the
    stream that leads to it. `device` is our device's name."""

    device: str
    public_key: PublicKey
    preshared_key: PresharedKey
    preshared_since: float
    stream: int | None
    stream_lost_at: float | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """One admitted client. `own` it carries alone; `shared` it could carry, assignment decides; `routes` it may reach, which
    only a sidecar has. `direct_key` is that of its second device, None for none, and `path` the device that it sends by
    and wants to be answered by. `once`: it has that device alone, and `public_key` is its key too. `device` is the one of ours
    whose peer `public_key` is, and that `stream` leads to; `other` is what it has at another one. `asked`: it was asked to come
    over to a new device. Times are monotonic."""

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
    device: str = ""
    other: Leg | None = None
    asked: bool = False

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        more = (self.direct_key, self.other.public_key if self.other is not None else None)
        return tuple(dict.fromkeys((self.public_key, *(key for key in more if key is not None))))

    @property
    def leg(self) -> Leg:
        """What it sends by."""
        return Leg(
            self.device,
            self.public_key,
            self.preshared_key,
            self.preshared_since,
            self.stream,
            self.stream_lost_at,
        )

    @property
    def legs(self) -> tuple[Leg, ...]:
        """What it has at devices of ours; the one that it sends by comes first."""
        return (self.leg,) if self.other is None else (self.leg, self.other)

    def at(self, device: str) -> Leg | None:
        """What it has at this device of ours."""
        return next((leg for leg in self.legs if leg.device == device), None)

    def on(self, leg: Leg, other: Leg | None) -> Client:
        """The same client, which sends by `leg`."""
        return replace(
            self,
            device=leg.device,
            public_key=leg.public_key,
            preshared_key=leg.preshared_key,
            preshared_since=leg.preshared_since,
            stream=leg.stream,
            stream_lost_at=leg.stream_lost_at,
            other=other,
        )


@dataclass(frozen=True, slots=True)
class Registry:
    """`clients` by identity text, `holders` is who has which public key. `adopted` are peers found on the device at start,
    kept until `adopted_until` so that a restarted server interrupts nobody; a client that enrols again takes its place;
    `adopted_next` are those of the device with the next key, and `next_routes` what was reached by that one.
    `known` is which sidecar had which address then, as the IPAM says; `adopted_direct` are the peers of the second device,
    and `direct_routes` the addresses that were answered by it."""

    clients: Mapping[str, Client] = field(default_factory=lambda: MappingProxyType({}))
    holders: Mapping[PublicKey, str] = field(default_factory=lambda: MappingProxyType({}))
    claims: Claims = field(default_factory=Claims)  # the `own` prefixes of all clients
    adopted: tuple[Peer, ...] = ()
    adopted_until: float = 0.0
    adopted_next: tuple[Peer, ...] = ()
    next_routes: frozenset[IPNetwork] = frozenset()
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
    device: str = "",
) -> Refuse | None:
    """All reasons to turn a client away that need no address; `device` is the one of ours that its stream leads to. None: go on to commit an address, then `admit`."""
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
    before = registry.clients.get(str(identity))
    is_beside = enroll.standby and before is not None and before.device == device and before.stream is not None
    if is_beside and before is not None and dict(enroll.public_keys).get(STREAM) != before.public_key:
        words = "this is the device that you send by, with another key: nothing can be on standby beside it"
        return Refuse("standby", words, retry_after_s=60.0)
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
    device: str = "",
    asked: bool = False,
) -> Admitted:
    """Take the client in (again). `addresses` are committed in the IPAM; a client that is in keeps its preshared key. The
    grant ends with what proved the identity, in `credential_s`. `once` is for those who asked to be kept when they have left.
    `device` is the one of ours that the stream leads to, `asked`: it was asked to come over to another one."""
    keys = dict(enroll.public_keys)
    key = keys[DIRECT] if once is not None else keys[STREAM]
    before = registry.clients.get(str(identity))
    preshared_since = now
    known = before.at(device) if before is not None else None
    if known is not None and known.public_key == key:
        preshared_key, preshared_since = known.preshared_key, known.preshared_since
    own, shared, refused = judge(registry.claims, policy, identity, enroll.offer)
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
        device=device,
        asked=asked or (before is not None and before.asked),
    )
    client = _beside(client, before, standby=enroll.standby)
    return Admitted(put(registry, client), client)


def _beside(client: Client, before: Client | None, *, standby: bool) -> Client:
    """With what it had at another device of ours, which stays as long as its stream. What is on standby is the other one, unless
    there is nothing else."""
    if before is None or client.once is not None or before.once is not None:
        return client
    if before.device == client.device:
        return replace(client, other=before.other)
    if standby and before.stream is not None:
        return client.on(before.leg, client.leg)
    return replace(client, other=before.leg if before.stream is not None else None)


def update_facts(
    registry: Registry, policy: Policy, identity: Identity, facts: Facts, device: str = ""
) -> Admitted | None:
    """The client's facts changed; they came by a stream to `device`. None: it is not in."""
    before = registry.clients.get(str(identity))
    if before is None or before.once is not None:
        return None
    own, shared, refused = judge(registry.claims, policy, identity, facts.offer)
    client = replace(before, own=own, shared=shared, refused=refused, path=facts.path)
    if before.other is not None and before.other.device == device and not facts.standby:
        client = client.on(before.other, before.leg)
    return Admitted(put(registry, client), client)


def stream_down(registry: Registry, key: str, stream: int, now: float) -> Registry:
    """The client stays in until its grant ends; what it shares moves to others meanwhile. `key` is its identity's text."""
    client = registry.clients.get(key)
    if client is not None and client.other is not None and client.other.stream == stream:
        other = replace(client.other, stream=None, stream_lost_at=now)
        return put(registry, replace(client, other=other))
    if client is None or client.stream != stream:
        return registry
    return put(registry, replace(client, stream=None, stream_lost_at=now))


def expire(registry: Registry, now: float) -> Registry:
    """Without those whose grants ended, and without adopted peers that nobody claimed in time."""
    ended = [c for c in registry.clients.values() if c.expires_at <= now]
    left = [c for c in registry.clients.values() if _is_left(c.other, now)]
    late = now >= registry.adopted_until and has_adopted(registry)
    if not ended and not left and not late:
        return registry
    for client in left:
        registry = put(registry, replace(client, other=None))
    registry = without(registry, ended)
    return replace(registry, adopted=(), adopted_next=(), adopted_direct=()) if late else registry


def _is_left(leg: Leg | None, now: float) -> bool:
    """Whether a client has given up what it had at another device, and what was on its way has arrived."""
    return leg is not None and leg.stream_lost_at is not None and now >= leg.stream_lost_at + LEG_KEPT_S


def has_adopted(registry: Registry) -> bool:
    return bool(registry.adopted or registry.adopted_next or registry.adopted_direct)


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
