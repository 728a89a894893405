"""An in-memory WireGuard with the kernel's rules, on a FakeHost."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.fakes.host import FakeHost, refuse
from agent.host import CreateDevice, RemoveAllowedIPs, RemovePeer, SetDevice, SetPeer, WireGuardStep
from agent.keys import public_key
from agent.model import (
    DeviceState,
    Endpoint,
    IPNetwork,
    Peer,
    PeerStatus,
    PresharedKey,
    PrivateKey,
    PublicKey,
)

_NO_PSK = PresharedKey(bytes(32))


@dataclass(slots=True)
class FakePeer:
    """Public so that a test can let a handshake happen or a peer roam."""

    endpoint: Endpoint | None = None
    preshared_key: PresharedKey | None = None
    persistent_keepalive_s: int = 0
    allowed_ips: set[IPNetwork] = field(default_factory=set)
    latest_handshake: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass(slots=True)
class FakeDevice:
    private_key: PrivateKey | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: dict[PublicKey, FakePeer] = field(default_factory=dict)


class FakeWireGuard:
    """`agent.host.WireGuard` without a kernel. `kind` is the kind of link it makes: "wireguard", or "tun" for wireguard-go.

    Like the kernel it is not transactional: `fail_after(n)` lets n steps happen and refuses the next one, once.
    """

    def __init__(self, host: FakeHost | None = None, *, kind: str = "wireguard") -> None:
        self.host = host if host is not None else FakeHost()
        self.kind = kind
        self.devices: dict[str, FakeDevice] = {}
        self._until_failure: int | None = None
        self._failure = errno.EIO
        self.host.listeners.append(self._forget)

    def fail_after(self, steps: int, code: int = errno.EIO) -> None:
        """Creating, each step of `apply` and deleting count as one."""
        self._until_failure, self._failure = steps, code

    def kill(self, ifname: str) -> None:
        """The device vanishes with its addresses and routes, as when wireguard-go dies or somebody deletes the link."""
        self.host.delete_link(ifname)

    async def create(self, step: CreateDevice) -> None:
        self._count(step.ifname)
        self.host.add_link(step.ifname, self.kind, step.mtu_bytes, step.alias)
        self.devices[step.ifname] = FakeDevice()

    async def read(self, ifname: str) -> DeviceState | None:
        device = self._find(ifname)
        if device is None:
            return None
        if self.host.link(ifname).up and not device.listen_port:
            device.listen_port = 40_000 + list(self.devices).index(ifname)  # the kernel takes a free one
        peers = sorted(device.peers.items())
        return DeviceState(
            private_key=device.private_key,
            listen_port=device.listen_port,
            fwmark=device.fwmark,
            peers=frozenset(
                Peer(key, frozenset(p.allowed_ips), p.endpoint, p.preshared_key, p.persistent_keepalive_s)
                for key, p in peers
            ),
            statuses=tuple(PeerStatus(key, p.endpoint, p.latest_handshake, p.rx_bytes, p.tx_bytes) for key, p in peers),
        )

    async def apply(self, steps: Sequence[WireGuardStep]) -> None:
        for step in steps:
            self._count(step.ifname)
            device = self._find(step.ifname)
            if device is None:
                raise refuse(errno.ENODEV, f"cannot set {step.ifname}")
            if isinstance(step, SetDevice):
                _set_device(device, step)
            elif isinstance(step, RemovePeer):
                device.peers.pop(step.public_key, None)
            elif isinstance(step, RemoveAllowedIPs):
                _take(device, step.allowed_ips)
            else:
                _set_peer(device, step)

    async def delete(self, ifname: str) -> None:
        self._count(ifname)
        if ifname in self.host.links and self._find(ifname) is None:
            raise refuse(errno.EOPNOTSUPP, f"cannot delete {ifname}: not WireGuard")
        if ifname in self.host.links:
            self.host.delete_link(ifname)

    def _find(self, ifname: str) -> FakeDevice | None:
        """The device, None when there is no such link or it is not WireGuard."""
        link = self.host.links.get(ifname)
        return self.devices.setdefault(ifname, FakeDevice()) if link is not None and link.kind == self.kind else None

    def _forget(self) -> None:
        for ifname in self.devices.keys() - self.host.links.keys():
            del self.devices[ifname]

    def _count(self, ifname: str) -> None:
        if self._until_failure is None:
            return
        if self._until_failure == 0:
            self._until_failure = None
            raise refuse(self._failure, f"injected failure on {ifname}")
        self._until_failure -= 1


def _set_device(device: FakeDevice, step: SetDevice) -> None:
    if step.private_key is not None:
        device.peers.pop(public_key(step.private_key), None)  # a device is not its own peer
        device.private_key = step.private_key
    if step.listen_port is not None:
        device.listen_port = step.listen_port
    if step.fwmark is not None:
        device.fwmark = step.fwmark


def _set_peer(device: FakeDevice, step: SetPeer) -> None:
    if device.private_key is not None and step.public_key == public_key(device.private_key):
        return  # silently, as the kernel does
    peer = device.peers.setdefault(step.public_key, FakePeer())
    if step.preshared_key is not None:
        peer.preshared_key = step.preshared_key if step.preshared_key != _NO_PSK else None
    if step.endpoint is not None:
        peer.endpoint = step.endpoint
    if step.persistent_keepalive_s is not None:
        peer.persistent_keepalive_s = step.persistent_keepalive_s
    _take(device, step.add_allowed_ips)
    peer.allowed_ips |= step.add_allowed_ips


def _take(device: FakeDevice, networks: frozenset[IPNetwork]) -> None:
    """Away from whichever peer has them: an allowed-ip belongs to one peer of a device."""
    for peer in device.peers.values():
        peer.allowed_ips -= networks
