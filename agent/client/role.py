"""What makes a client this client and no other: a shoot's node, or a sidecar. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.guard import Refusal
from agent.messages import STREAM, Direct, Grant, Offer
from agent.model import Device, Endpoint, IPNetwork, Peer, PublicKey, Route, Tunnel

KEEPALIVE_S = 25  # when the server names none: a stream that is taken over must be heard of (WireGuard whitepaper 6.5)

#: Added to the metrics of routes by the stream device that packets are not sent by.
BESIDE = 200

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
class BesideView:
    """The stream device that packets are not sent by, while there are two: without addresses and peers, what the server granted
    for it (None: nothing yet, it is left as it is), and where its carrier takes packets. `sysctls` are what two devices take here."""

    device: Device
    grant: Grant | None
    relay: Endpoint | None
    sysctls: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class View:
    """What a client knows when it decides what its host should be. `relay` is where the carrier takes WireGuard's packets,
    None while there is no carrier; `refused` are networks that the route guard turned down; `direct` is None without a
    second device; `offer` is what this host could carry; `beside` is there while keys are replaced. `ended` is the last grant, while there is none."""

    grant: Grant | None
    relay: Endpoint | None = None
    refused: frozenset[IPNetwork] = frozenset()
    direct: DirectView | None = None
    offer: Offer = field(default_factory=Offer)
    beside: BesideView | None = None
    ended: Grant | None = None


class ClientRole(Protocol):
    """A role of the dialling side."""

    def routed(self, grant: Grant) -> tuple[IPNetwork, ...]:
        """What a grant wants to be routed into the tunnel here: the route guard is asked about it."""

    def tunnel(self, device: Device, view: View) -> Tunnel:
        """The whole host. `device` comes without addresses and peers."""


def beside(view: View, like: Device) -> tuple[Device, ...]:
    """The other stream device with the addresses and allowed-ips of the one in use, `like`: it takes what comes by it, and waits for
    routes. None of it before the server has granted it."""
    other = view.beside
    if other is None or other.grant is None or view.grant is None:
        return ()
    key, allowed = server_key(other.grant), frozenset(n for peer in like.peers for n in peer.allowed_ips)
    if key is None:
        return ()
    keepalive_s = other.grant.persistent_keepalive_s or KEEPALIVE_S
    peer = Peer(key, allowed, other.relay, other.grant.preshared_key, keepalive_s)
    device = replace(other.device, mtu_bytes=like.mtu_bytes, addresses=like.addresses, peers=frozenset({peer}))
    return (device,)


def beside_sysctls(view: View, devices: tuple[Device, ...]) -> frozenset[tuple[str, str]]:
    """What it takes that these devices are there."""
    return view.beside.sysctls if view.beside is not None and devices else frozenset()


def beside_routes(devices: tuple[Device, ...], routes: Iterable[Route], like: Device) -> frozenset[Route]:
    """Standby routes by the other stream device, for its canary, which names its device."""
    return frozenset(
        replace(route, ifname=device.ifname, metric=route.metric + BESIDE)
        for device in devices
        for route in routes
        if route.ifname == like.ifname
    )


def server_key(grant: Grant) -> PublicKey | None:
    """The server's key for the device of the stream; None if it names none (a newer server that has no such path)."""
    return dict(grant.public_keys).get(STREAM)
