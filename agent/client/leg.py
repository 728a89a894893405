"""One of a client's stream devices with all that belongs to it: key, carrier, session, canary. There is one, and while keys are
replaced a second one beside it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from agent.canary import Responder
from agent.carrier.api import Command, Configure, DialConfig, DialFailed, Stats, Up
from agent.client.role import server_key
from agent.dataplane import DataPlane
from agent.engine import Pass
from agent.host import SetPeer
from agent.model import Device, Endpoint, IPAddress, PeerStatus
from agent.session import Session


@dataclass(slots=True, eq=False)
class Leg:
    """Mutable. `send` is its carrier's, `config` what that was told, as far as it is known here."""

    plane: DataPlane
    session: Session
    port: int
    send: Callable[[Command], None]
    config: DialConfig | None = None
    responder: Responder = field(default_factory=lambda: Responder(time.monotonic))
    up: Up | None = None
    dial_failed: DialFailed | None = None
    relay: Endpoint | None = None
    stats: Stats | None = None
    status: PeerStatus | None = None  # WireGuard's own counters, a few seconds old
    kicks: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0
    listening: asyncio.Task[None] | None = None
    _listening_on: IPAddress | None = None  # the address of the canary's socket

    def device(self, mtu_bytes: int) -> Device:
        """As desired, without addresses and peers."""
        return self.plane.device(listen_port=self.port, mtu_bytes=mtu_bytes)

    def say(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self.send(command)

    def aim(self, target: str) -> None:
        """The carrier's next stream asks for this one of the server's devices; the one that there is stays."""
        if self.config is not None and self.config.target != target:
            self.config = replace(self.config, target=target)
            self.send(Configure(self.config))

    def on_pass(self, done: Pass) -> bool:
        """The engine has looked: keep the canary open, start a handshake where there is a new peer. True: look again."""
        again = self.plane.is_new_incarnation(done)
        grant = self.session.grant
        made = self.plane.ifname in done.created
        if grant is not None and done.error is None and (made or self._needs_canary()):
            self._listening_on = None
            if grant.addresses and self.responder.open(self.plane.ifname, grant.addresses[0]):
                self._listening_on = grant.addresses[0]
                self.poke()
        elif any(isinstance(step, SetPeer) and step.ifname == self.plane.ifname for step in done.steps):
            self.poke()  # a new peer handshakes with its first packet
        return again

    def _needs_canary(self) -> bool:
        """It is closed, or listens on an address that is ours no more."""
        grant = self.session.grant
        return grant is not None and bool(grant.addresses) and self._listening_on != grant.addresses[0]

    def poke(self) -> None:
        """One datagram to the server, for the handshake's sake, and so that it learns of our stream."""
        grant = self.session.grant
        if grant is not None and grant.addresses:
            server = next((a for a in grant.servers if a.version == grant.addresses[0].version), None)
            if server is not None:
                self.responder.poke(server)

    async def look(self) -> None:
        """Read WireGuard's counters. Raises HostError."""
        device = await self.plane.read()
        key = server_key(self.session.grant) if self.session.grant else None
        statuses = device.statuses if device is not None else ()
        self.status = next((s for s in statuses if s.public_key == key), None)
