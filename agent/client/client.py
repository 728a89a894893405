"""The side that dials: keeps the session with the seed server, and its host as the server's grant wants it.

At start it touches nothing that it finds: a device of an earlier run keeps carrying packets until the server has spoken
again, or until no grant can be valid any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from secrets import token_hex

from agent.canary import Responder
from agent.carrier.api import Close, Command, DialFailed, Down, Event, GetStats, Message, Ready, Stats, Up
from agent.client.direct import TICK_S, DirectPath
from agent.client.keeper import Keeper
from agent.client.passage import Passage
from agent.client.role import ClientRole, Guard, View, server_key
from agent.dataplane import DataPlane
from agent.engine import Pass
from agent.errors import HostError
from agent.guard import Refusal
from agent.health import duration
from agent.host import RemovePeer, SetPeer
from agent.identity import Identity, Role
from agent.messages import DIRECT, LIFETIME_MAX_S, STREAM, Offer
from agent.model import Endpoint, IPAddress, PeerStatus, PublicKey, Tunnel
from agent.run import spawn
from agent.session import Session, State

log = logging.getLogger("rhizome.client")

BEAT_S = 1.0
STATUS_EVERY = 3  # beats between two looks at WireGuard's counters
GUARD_EVERY = 10  # beats between two looks at what the host must reach without the tunnel


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
    refused: tuple[Refusal, ...] = ()  # what the server wanted to route here and may not


class Client:
    """One host's client. `run` returns when `stop` is set, and leaves the data plane and the carrier running.

    `direct` is its second path, None for a role that has none; `keeper` keeps the server's credentials, None where a
    certificate or somebody else's token says who we are.
    """

    def __init__(
        self,
        role: ClientRole,
        plane: DataPlane,
        offer: Offer,
        send: Callable[[Command], None],
        guard: Guard,
        *,
        control_plane: str,
        wireguard_port: int,
        mtu_bytes: int,
        resync_s: float,
        software: str,
        direct: DirectPath | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.role = role
        self.keeper = keeper
        self.plane = plane
        self.direct = direct
        keys = [(STREAM, plane.incarnation.public_key)]
        keys += [(DIRECT, direct.plane.incarnation.public_key)] if direct is not None else []
        self.session = Session(tuple(keys), offer, software, process=token_hex(8))
        if direct is not None:
            self.session.path = direct.ladder.path.value
        self.live = Live()
        self.responder = Responder(time.monotonic)
        self.passage = Passage()
        self._server = Identity(control_plane, Role.SEED_SERVER)
        self.mtu_bytes = mtu_bytes
        self._wireguard_port = wireguard_port
        self._send = send
        self._guard = guard
        self._kicks: Counter[str] = Counter()
        self._warned_s = math.inf
        self._listening_on: IPAddress | None = None  # the address of the canary's socket
        self._spoken = asyncio.Event()  # the server granted or refused
        self.engine = plane.engine(self._desired, self._on_pass, resync_s)

    async def run(self, events: AsyncIterator[Event], stop: asyncio.Event) -> None:
        """`events` are the carrier's."""
        spawn(self._reconcile(), name="client.engine", vital=True)
        spawn(self._listen(events), name="client.events", vital=True)
        spawn(self._beat(), name="client.beat", vital=True)
        if self.direct is not None:
            spawn(self._climb(self.direct), name="client.ladder", vital=True)
        await stop.wait()
        self.responder.close()
        if self.direct is not None:
            self.direct.responder.close()

    def set_offer(self, offer: Offer) -> None:
        """What this host could carry has changed."""
        self._say(self.session.set_offer(offer))
        self.engine.wake()

    # What this host should be

    def _desired(self) -> Tunnel:
        device = self.plane.device(listen_port=self._wireguard_port, mtu_bytes=self.mtu_bytes)
        refused = frozenset(refusal.network for refusal in self.live.refused)
        grant = self.session.grant
        direct = self.direct.view(grant, time.monotonic()) if self.direct is not None else None
        return self.role.tunnel(device, View(grant, self.live.relay, refused, direct, self.session.offer))

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
        if self.direct is not None and self.direct.on_pass(done, self.session.grant):
            self.engine.wake()
        if (
            self.session.grant is not None
            and done.error is None
            and (self.plane.ifname in done.created or self._needs_canary())
        ):
            self._open_canary()
        elif any(isinstance(step, SetPeer) and step.ifname == self.plane.ifname for step in done.steps):
            self._poke()  # a new peer handshakes with its first packet

    def _needs_canary(self) -> bool:
        """It is closed, or listens on an address that is ours no more."""
        grant = self.session.grant
        return grant is not None and bool(grant.addresses) and self._listening_on != grant.addresses[0]

    def _open_canary(self) -> None:
        grant = self.session.grant
        self._listening_on = None
        if grant is not None and grant.addresses and self.responder.open(self.plane.ifname, grant.addresses[0]):
            self._listening_on = grant.addresses[0]
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
        self._ask_guard()
        for path in session.kicks:
            if session.kicks[path] != self._kicks[path]:
                spawn(self._kick(path), name=f"client.kick.{path}")
        self._kicks = session.kicks.copy()
        if self.keeper is not None and session.grant is not None and session.grant.credential is not None:
            spawn(self.keeper.keep(session.grant.credential), name="client.credential")
        if session.grant is not None or session.state is State.REFUSED:
            self._spoken.set()
        self.engine.wake()

    def _ask_guard(self) -> None:
        """The routes that the grant wants here are held against what this host must reach without the tunnel."""
        if self.session.grant is None:
            return
        try:
            refused = self._guard(self.role.routed(self.session.grant))
        except HostError as exc:
            log.warning("the routes stay as they are: %s", exc, extra={"event": "guard.failed"})
            return
        if refused == self.live.refused:
            return
        for refusal in refused:
            if refusal not in self.live.refused:
                log.warning("%s", refusal, extra={"event": "route.refused", "reason": refusal.reason.value})
        self.live.refused = refused
        self.engine.wake()

    async def _kick(self, path: str) -> None:
        """Take the server's peer away; the engine sets it again, and a peer without a session handshakes with its first packet.

        WireGuard alone would notice after 15 s that the other side forgot the session (whitepaper 6.4).
        """
        plane = self.plane if path == STREAM else self.direct.plane if self.direct is not None else None
        key = self._server_key(path)
        if key is not None and plane is not None:
            log.info("the server's device is new: handshake at once", extra={"event": "epoch.changed", "path": path})
            try:
                await plane.wg.apply([RemovePeer(plane.ifname, key)])
            except HostError as exc:
                log.warning("kick: %s", exc, extra={"event": "kick.failed"})
            await self.engine.settled()
            self._poke()

    def _server_key(self, path: str) -> PublicKey | None:
        incarnations = self.session.grant.incarnations() if self.session.grant else {}
        return incarnations[path][0] if path in incarnations else None

    def _say(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self._send(command)

    # What time brings

    async def _climb(self, direct: DirectPath) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if direct.tick(self.session.grant, self.responder.age_s(now), now):
                self._say(self.session.set_path(direct.ladder.path.value))
                self.engine.wake()

    async def _beat(self) -> None:
        for beat in itertools.count():
            if beat % STATUS_EVERY == 0:
                await self._look()
            if beat % GUARD_EVERY == 0:
                self._ask_guard()
                if self.keeper is not None:
                    await self.keeper.retry()
            await asyncio.sleep(BEAT_S)
            had_grant = self.session.grant is not None
            self._say(self.session.tick(time.monotonic()))
            self._warn_of_the_end(self.session.unrenewed_s(time.monotonic()))
            if had_grant and self.session.grant is None:
                log.warning(
                    "the grant ran out; the tunnel is closed until the server renews it",
                    extra={"event": "grant.expired"},
                )
                self.engine.wake()
            self._send(GetStats())

    def _warn_of_the_end(self, left_s: float | None) -> None:
        """Each time that half of what was left has passed."""
        if left_s is None:
            self._warned_s = math.inf
        elif left_s <= self._warned_s / 2:
            self._warned_s = left_s
            failed = self.live.dial_failed
            log.warning(
                "the grant cannot be renewed and ends in %s: %s",
                duration(left_s),
                f"{failed.stage}: {failed.detail}" if failed else "the server does not answer, or our credential ends",
                extra={"event": "grant.ending", "left_s": round(left_s)},
            )

    async def _look(self) -> None:
        try:
            device = await self.plane.read()
            self.passage.note(self.plane.net.firewall_counters(), time.monotonic())
        except HostError as exc:
            log.debug("cannot read the device: %s", exc, extra={"event": "device.unreadable"})
            return
        key = server_key(self.session.grant) if self.session.grant else None
        if self.direct is not None:
            await self.direct.look(self.session.grant)
        statuses = device.statuses if device is not None else ()
        self.live.status = next((s for s in statuses if s.public_key == key), None)
