"""What makes a client this client and no other: a shoot's node, or a sidecar. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.guard import Refusal
from agent.messages import STREAM, Direct, Grant, Offer
from agent.model import Device, Endpoint, IPNetwork, PublicKey, Tunnel

KEEPALIVE_S = 25  # when the server names none: a stream that is taken over must be heard of (WireGuard whitepaper 6.5)

#: Which of these networks must not be routed into the tunnel here, and why not.
Guard = Callable[[Sequence[IPNetwork]], tuple[Refusal, ...]]


@dataclass(frozen=True, slots=True)
class DirectView:
    """The second device, without addresses and peers. `direct` is what the server offers, None while it offers nothing;
    `endpoint` is where it is tried, None to leave that to WireGuard. `in_use`: packets go by it."""

    device: Device
    direct: Direct | None
    endpoint: Endpoint | None = None
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What a client knows when it decides what its host should be. `relay` is where the carrier takes WireGuard's packets,
    None while there is no carrier; `refused` are networks that the route guard turned down; `direct` is None without a
    second device; `offer` is what this host could carry."""

    grant: Grant | None
    relay: Endpoint | None = None
    refused: frozenset[IPNetwork] = frozenset()
    direct: DirectView | None = None
    offer: Offer = field(default_factory=Offer)


class ClientRole(Protocol):
    """A role of the dialling side."""

    def routed(self, grant: Grant) -> tuple[IPNetwork, ...]:
        """What a grant wants to be routed into the tunnel here: the route guard is asked about it."""

    def tunnel(self, device: Device, view: View) -> Tunnel:
        """The whole host. `device` comes without addresses and peers."""


def server_key(grant: Grant) -> PublicKey | None:
    """The server's key for the device of the stream; None if it names none (a newer server that has no such path)."""
    return dict(grant.public_keys).get(STREAM)
