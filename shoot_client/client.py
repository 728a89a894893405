"""The shoot client: keeps the session with the seed server, and this node as the server's grant wants it.

At start it touches nothing that it finds: a device of an earlier run keeps carrying packets until the server has spoken
again, or until no grant can be valid any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

from agent.canary import Responder
from agent.carrier.api import Close, Command, DialFailed, Down, Event, GetStats, Message, Ready, Stats, Up
from agent.dataplane import DataPlane
from agent.engine import Pass
from agent.errors import HostError
from agent.host import RemovePeer, SetPeer
from agent.identity import Identity, Role
from agent.messages import LIFETIME_MAX_S, Offer
from agent.model import Endpoint, IPNetwork, PeerStatus, Tunnel
from agent.run import spawn
from agent.session import Session, State
from shoot_client import desired
from shoot_client.desired import STREAM, Node
from shoot_client.facts import own_addresses

log = logging.getLogger("rhizome.shoot")

BEAT_S = 1.0
STATUS_EVERY = 3  # beats between two looks at WireGuard's counters
#: The tunnel networks of a grant that would capture what this node needs, with words.
Guard = Callable[[tuple[IPNetwork, ...]], tuple[tuple[IPNetwork, str], ...]]


@dataclass(slots=True)
class Live:
    """What the client knows besides the session."""

    up: Up | None = None
    dial_failed: DialFailed | None = None
    relay: Endpoint | None = None
    stats: Stats | None = None
    status: PeerStatus | None = None  # WireGuard's own counters, a few seconds old
    last_pass: Pass | None = None
    reconnects: int = 0
    steps: Counter[str] = field(default_factory=Counter)  # applied by the engine, by kind
    refused: tuple[tuple[IPNetwork, str], ...] = ()  # what the server wanted to route here and may not


class ShootClient:
    """One node's client. `run` returns when `stop` is set, and leaves the data plane and the carrier running."""

    def __init__(
        self,
        node: Node,
        plane: DataPlane,
        offer: Offer,
        send: Callable[[Command], None],
        guard: Guard,
        *,
        control_plane: str,
        mtu_bytes: int,
        resync_s: float,
        software: str,
    ) -> None:
        self.node = node
        self.plane = plane
        self.session = Session(((STREAM, plane.incarnation.public_key),), offer, software)
        self.live = Live()
        self.responder = Responder(time.monotonic)
        self._server = Identity(control_plane, Role.SEED_SERVER)
        self.mtu_bytes = mtu_bytes
        self._send = send
        self._guard = guard
        self._kicks = 0
        self._spoken = asyncio.Event()  # the server granted or refused
        self.engine = plane.engine(self._desired, self._on_pass, resync_s)

    async def run(self, events: AsyncIterator[Event], stop: asyncio.Event) -> None:
        """`events` are the carrier's."""
        spawn(self._reconcile(), name="shoot.engine", vital=True)
        spawn(self._listen(events), name="shoot.events", vital=True)
        spawn(self._beat(), name="shoot.beat", vital=True)
        await stop.wait()
        self.responder.close()

    def set_offer(self, offer: Offer) -> None:
        """The node's facts changed."""
        self._say(self.session.set_offer(offer))
        self.engine.wake()

    # What this node should be

    def _desired(self) -> Tunnel:
        device = self.plane.device(listen_port=self.node.wireguard_port, mtu_bytes=self.mtu_bytes)
        refused = [network for network, _ in self.live.refused]
        return desired.tunnel(
            device, self.node, self.session.grant, self.live.relay, refused, own_addresses(self.session.offer)
        )

    async def _reconcile(self) -> None:
        if self.plane.adopted is not None:
            log.info("keeping the device as it is until the server has spoken", extra={"event": "device.kept"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._spoken.wait(), LIFETIME_MAX_S)
        await self.engine.run()

    def _on_pass(self, done: Pass) -> None:
        self.live.last_pass = done
        self.live.steps.update(type(step).__name__ for step in done.steps)
        if self.plane.is_new_incarnation(done):
            self.engine.wake()
        if self.session.grant is not None and done.error is None and (done.created or not self.responder.is_open):
            self._open_canary()
        elif any(isinstance(step, SetPeer) for step in done.steps):
            self._poke()  # a new peer handshakes with its first packet

    def _open_canary(self) -> None:
        grant = self.session.grant
        if grant is not None and grant.addresses and self.responder.open(self.plane.ifname, grant.addresses[0]):
            self._poke()

    def _poke(self) -> None:
        grant = self.session.grant
        if grant is not None and grant.addresses:
            server = next((a for a in grant.servers if a.version == grant.addresses[0].version), None)
            if server is not None:
                self.responder.poke(server)

    # What the carrier says

    async def _listen(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if isinstance(event, Ready):
                self.live.relay = Endpoint(ip_address("127.0.0.1"), event.relay_port)
                self.engine.wake()
            elif isinstance(event, Up):
                self._up(event)
            elif isinstance(event, Message):
                self._say(self.session.on_message(event.stream, event.text, time.monotonic()))
                self._granted()
            elif isinstance(event, Down):
                self._down(event)
            elif isinstance(event, DialFailed):
                self._dial_failed(event)
            elif isinstance(event, Stats):
                self.live.stats = event

    def _up(self, event: Up) -> None:
        self.live.dial_failed = None
        self.live.reconnects += self.live.up is not None
        self.live.up = event
        try:
            identity = Identity.parse(event.identity)
        except ValueError as exc:
            self._say((Close(event.stream, f"the server's identity: {exc}", retry_in_s=10.0),))
            return
        if identity != self._server:
            self._say((Close(event.stream, f"the server is {identity}, not {self._server}", retry_in_s=10.0),))
            return
        log.info("connected to %s, %s", event.peer, event.via, extra={"event": "stream.up", "stream": event.stream})
        self._say(self.session.on_up(event.stream, event.replay, time.monotonic()))
        self._granted()
        self._poke()  # a running session learns of its new stream at once

    def _down(self, event: Down) -> None:
        self.session.on_down(event.stream)
        level = logging.INFO if event.reason in ("replaced", "retired") else logging.WARNING
        log.log(
            level,
            "stream down: %s %s",
            event.reason,
            event.detail,
            extra={"event": "stream.down", "stream": event.stream},
        )

    def _dial_failed(self, event: DialFailed) -> None:
        known, self.live.dial_failed = self.live.dial_failed, event
        if known is None or (known.stage, known.detail) != (event.stage, event.detail):
            log.warning(
                "cannot connect: %s: %s (again in %.1f s)",
                event.stage,
                event.detail,
                event.retry_in_s,
                extra={"event": "dial.failed", "stage": event.stage},
            )

    def _granted(self) -> None:
        """The grant may have changed: check what it wants here, kick the peer if the server's device is a new one."""
        session = self.session
        if session.grant is not None:
            refused = self._guard(session.grant.tunnel_networks)
            if refused != self.live.refused:
                for network, text in refused:
                    log.warning("the server may not route %s here: %s", network, text, extra={"event": "route.refused"})
            self.live.refused = refused
        if session.kicks != self._kicks:
            self._kicks = session.kicks
            spawn(self._kick(), name="shoot.kick")
        if session.grant is not None or session.state is State.REFUSED:
            self._spoken.set()
        self.engine.wake()

    async def _kick(self) -> None:
        """Take the server's peer away; the engine sets it again, and a peer without a session handshakes with its first packet.

        WireGuard alone would notice after 15 s that the other side forgot the session (whitepaper 6.4).
        """
        key = desired.server_key(self.session.grant) if self.session.grant else None
        if key is not None:
            log.info("the server's device is new: handshake at once", extra={"event": "epoch.changed"})
            try:
                await self.plane.wg.apply([RemovePeer(self.plane.ifname, key)])
            except HostError as exc:
                log.warning("kick: %s", exc, extra={"event": "kick.failed"})
            await self.engine.settled()
            self._poke()

    def _say(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self._send(command)

    # What time brings

    async def _beat(self) -> None:
        for beat in itertools.count():
            if beat % STATUS_EVERY == 0:
                await self._look()
            await asyncio.sleep(BEAT_S)
            had_grant = self.session.grant is not None
            self._say(self.session.tick(time.monotonic()))
            if had_grant and self.session.grant is None:
                log.warning(
                    "the grant ran out; the tunnel is closed until the server renews it",
                    extra={"event": "grant.expired"},
                )
                self.engine.wake()
            self._send(GetStats())

    async def _look(self) -> None:
        try:
            device = await self.plane.read()
        except HostError as exc:
            log.debug("cannot read the device: %s", exc, extra={"event": "device.unreadable"})
            return
        key = desired.server_key(self.session.grant) if self.session.grant else None
        statuses = device.statuses if device is not None else ()
        self.live.status = next((s for s in statuses if s.public_key == key), None)
