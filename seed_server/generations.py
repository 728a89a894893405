"""The server's stream devices: the one in use, and while its key is replaced the one with the next key.

Both have the same addresses; each has a canary of its own. What follows from there being two is for seed_server.desired and
seed_server.registry; when there are two is said by seed_server.succession.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network

from agent.canary import Prober, Target
from agent.dataplane import DataPlane, open_both
from agent.engine import Pass
from agent.errors import HostError, Unsupported
from agent.generations import Names, target
from agent.loose import is_strict, loose, obstacle
from agent.messages import Credential, Direct, Grant
from agent.model import Device, IPAddress, IPNetwork, Peer, PeerStatus, PublicKey
from agent.pulse import Pulse
from seed_server import desired
from seed_server.charter import Charter
from seed_server.registry import Client, Leg

log = logging.getLogger("rhizome.seed")


class Generations:
    """Mutable: `current`, and `successor` while there is one."""

    def __init__(self, current: DataPlane, names: Names, mtu_bytes: int, successor: DataPlane | None = None) -> None:
        self.current = current
        self.successor = successor
        self.names = names
        self.statuses: dict[str, tuple[PeerStatus, ...]] = {}  # WireGuard's own counters by device, a few seconds old
        self._mtu_bytes = mtu_bytes
        found = (
            successor.adopted.peers if successor is not None and successor.adopted is not None else frozenset[Peer]()
        )
        self._came = frozenset[IPNetwork]().union(*(peer.allowed_ips for peer in found))
        self._probers: dict[str, Prober] = {}

    @classmethod
    async def find(cls, first: DataPlane, names: Names, mtu_bytes: int) -> Generations:
        """As an earlier run has left them. Raises ConfigError."""
        old, new = await open_both(first, names)
        return cls(old, names, mtu_bytes, new)

    @property
    def planes(self) -> tuple[DataPlane, ...]:
        return (self.current,) if self.successor is None else (self.current, self.successor)

    @property
    def keys(self) -> frozenset[PublicKey]:
        return frozenset(plane.incarnation.public_key for plane in self.planes)

    def has_come(self, addresses: Iterable[IPAddress]) -> bool:
        """Whether the client with these addresses was coming over when this server started."""
        return self.successor is not None and not self._came.isdisjoint(map(ip_network, addresses))

    def at(self, ifname: str) -> DataPlane:
        """The plane of this device; the one in use, if there is no such device."""
        return next((plane for plane in self.planes if plane.ifname == ifname), self.current)

    def by_port(self, port: int) -> DataPlane:
        """The plane that a stream leads to."""
        return next((plane for plane in self.planes if self.port_of(plane) == port), self.current)

    def port_of(self, plane: DataPlane) -> int:
        return self.names.port_of(plane.ifname)

    def device(self, plane: DataPlane) -> Device:
        """As desired, without addresses and peers."""
        return plane.device(listen_port=self.port_of(plane), mtu_bytes=self._mtu_bytes)

    def targets(self) -> tuple[tuple[str, int], ...]:
        """What clients may ask for, and the ports that it is at."""
        return tuple((target(plane.incarnation.public_key), self.port_of(plane)) for plane in self.planes)

    def sysctls(self) -> frozenset[tuple[str, str]]:
        """What it takes that there are two."""
        names = [plane.ifname for plane in self.planes]
        return loose(names) if len(names) > 1 and is_strict() else frozenset()

    async def make_successor(self) -> DataPlane:
        """A device with a new key, under the name that is free. Raises HostError, ConfigError, Unsupported."""
        if words := obstacle():
            raise Unsupported(words)
        free = self.names.other(self.current.ifname)
        await self.remove(free)
        self.successor = await DataPlane.open(self.current.wg, self.current.net, free, self.current.role)
        return self.successor

    async def remove(self, ifname: str) -> None:
        """Delete a device of ours that is not in use. Raises HostError."""
        self._probers.pop(ifname, Prober(time.monotonic)).close()
        self.statuses.pop(ifname, None)
        if await self.current.wg.read(ifname) is not None:
            await self.current.wg.delete(ifname)

    def grant(
        self,
        leg: Leg,
        charter: Charter,
        client: Client,
        now: float,
        direct: Direct | None,
        credential: Credential | None,
    ) -> Grant:
        """What a client is told on one of its streams."""
        plane = self.at(leg.device)
        comes = self.successor if client.asked and plane is self.current else None
        return desired.grant(
            plane.incarnation.public_key,
            plane.incarnation.epoch,
            charter,
            replace(client, preshared_key=leg.preshared_key),
            now,
            direct,
            credential,
            target=target(plane.incarnation.public_key) if self.successor is not None else "",
            successor=target(comes.incarnation.public_key) if comes is not None else "",
        )

    # Canaries and counters

    def prober(self, plane: DataPlane) -> Prober:
        if plane.ifname not in self._probers:
            self._probers[plane.ifname] = Prober(time.monotonic)
        return self._probers[plane.ifname]

    def on_pass(self, done: Pass, address: IPAddress) -> bool:
        """The engine has looked. True when a device is a new one, which its clients have to hear of."""
        anew = False
        for plane in self.planes:
            anew |= plane.is_new_incarnation(done)
            prober = self.prober(plane)
            if done.error is None and (plane.ifname in done.created or not prober.is_open):
                prober.open(plane.ifname, address)
        return anew

    def watch(self, client: Client, pulse: Pulse, now: float) -> None:
        """Ask this client by each device where it has something; what it answers by the one that it sends by is its pulse."""
        main = self.at(client.device)
        for plane in self.planes:
            prober = self.prober(plane)
            for address in map(str, client.addresses[:1]):
                if plane is main:
                    prober.watch(address, pulse)
                elif client.at(plane.ifname) is not None:
                    known = prober.targets.get(address)
                    beside = known.pulse if known is not None and known.pulse is not pulse else Pulse(now)
                    prober.watch(address, beside)
                else:
                    prober.forget(address)

    def forget(self, address: IPAddress) -> None:
        for prober in self._probers.values():
            prober.forget(str(address))

    def ask(self) -> None:
        for prober in self._probers.values():
            prober.ask()

    @property
    def stalled(self) -> bool:
        """Nobody's answers come in time."""
        return bool(self._probers) and all(prober.stalled for prober in self._probers.values())

    def canaries(self, clients: list[Client]) -> dict[str, Target]:
        """By tunnel address: of the device that each client sends by."""
        found = {}
        for client in clients:
            for address in map(str, client.addresses[:1]):
                known = self.prober(self.at(client.device)).targets.get(address)
                if known is not None:
                    found[address] = known
        return found

    def close(self) -> None:
        for prober in self._probers.values():
            prober.close()

    async def look(self) -> None:
        """Read WireGuard's counters."""
        for plane in self.planes:
            try:
                device = await plane.read()
            except HostError as exc:
                log.debug("cannot read the device: %s", exc, extra={"event": "device.unreadable"})
                continue
            self.statuses[plane.ifname] = device.statuses if device is not None else ()
