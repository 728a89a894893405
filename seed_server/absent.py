"""Sidecars that configured their pods and left: what keeps them in, and how they are written down. Pure.

A sidecar that is there renews its grant; one that left cannot. It stays in for as long as WireGuard's handshakes go on, which only
the holder of its private key can make, and at the longest until its certificate ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from agent.identity import Identity, Role
from agent.keys import generate_preshared_key
from agent.messages import DIRECT
from agent.model import PublicKey
from seed_server.policy import Policy
from seed_server.registry import Client, Once, Registry, put

VERSION = 1


def restore(registry: Registry, policy: Policy, left: Iterable[Client], now: float) -> Registry:
    """With those who left before this server started, as far as they may still reach something. How long they have been silent
    is not known: their time begins anew."""
    for client in left:
        routes = policy.reach(client.identity)
        if client.once is None or routes is None or policy.no_once or policy.no_sidecars:
            continue
        if client.once.ends_at > now and not any(key in registry.holders for key in client.keys):
            expires_at = min(now + policy.silence_s, client.once.ends_at)
            registry = put(registry, replace(client, routes=routes, expires_at=expires_at))
    return registry


def heard(registry: Registry, policy: Policy, handshakes: Mapping[PublicKey, float], now: float) -> Registry:
    """A handshake of somebody who left keeps it in. What counts is that its time is another one than before: the clock that
    WireGuard reads may be stepped."""
    for client in [c for c in registry.clients.values() if c.once is not None]:
        handshake = handshakes.get(client.public_key)
        assert client.once is not None
        if handshake is not None and handshake != client.once.handshake:
            once = replace(client.once, handshake=handshake)
            expires_at = min(now + policy.silence_s, once.ends_at)
            registry = put(registry, replace(client, once=once, expires_at=expires_at))
    return registry


def encode(clients: Iterable[Client]) -> str:
    """JSON, in the order of the names."""
    rows = [
        {
            "identity": str(client.identity),
            "public_key": str(client.public_key),
            "addresses": [str(address) for address in client.addresses],
            "not_after": client.once.not_after,
        }
        for client in clients
        if client.once is not None
    ]
    rows.sort(key=lambda row: str(row["identity"]))
    return json.dumps({"version": VERSION, "sidecars": rows}, indent=1) + "\n"


def decode(text: str, wall: float, now: float) -> tuple[Client, ...]:
    """Raises ValueError, TypeError or KeyError for anything that `encode` did not write."""
    body = json.loads(text)
    if body["version"] != VERSION:
        raise ValueError(f"version {body['version']}")
    return tuple(_client(row, wall, now) for row in body["sidecars"])


def _client(row: Mapping[str, Any], wall: float, now: float) -> Client:
    identity, key = Identity.parse(row["identity"]), PublicKey.from_base64(row["public_key"])
    if identity.role is not Role.SIDECAR:
        raise ValueError("not a sidecar")
    not_after = float(row["not_after"])
    return Client(
        identity=identity,
        public_key=key,
        addresses=tuple(ip_address(address) for address in row["addresses"]),
        own=(),
        shared=(),
        refused=(),
        preshared_key=generate_preshared_key(),  # of a device that it does not have
        expires_at=now,
        stream=None,
        direct_key=key,
        path=DIRECT,
        once=Once(not_after, now + not_after - wall),
    )
