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
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from secrets import token_hex

from agent.canary import Responder
from agent.carrier.api import (
    SYMBOLIC_TARGET,
    Close,
    Command,
    DialConfig,
    DialFailed,
    Down,
    Event,
    GetStats,
    Message,
    Ready,
    Stats,
    Up,
)
from agent.client.crossing import Crossing
from agent.client.direct import TICK_S, DirectPath
from agent.client.keeper import Keeper
from agent.client.kit import Kit
from agent.client.leg import Leg
from agent.client.passage import Passage
from agent.client.role import BesideView, ClientRole, Guard, View
from agent.dataplane import DataPlane
from agent.engine import Pass
from agent.errors import HostError
from agent.guard import Refusal
from agent.health import duration
from agent.host import RemovePeer
from agent.identity import Identity, Role
from agent.loose import is_strict, loose
from agent.messages import DIRECT, LIFETIME_MAX_S, STREAM, Offer
from agent.model import Endpoint, Tunnel
from agent.run import spawn
from agent.session import Session, State

log = logging.getLogger("rhizome.client")

BEAT_S = 1.0
STATUS_EVERY = 3  # beats between two looks at WireGuard's counters
GUARD_EVERY = 10  # beats between two looks at what the host must reach without the tunnel


@dataclass(slots=True)
class Live:
    """What the client knows besides its legs."""

    last_pass: Pass | None = None
    steps: Counter[str] = field(default_factory=Counter)  # applied by the engine, by kind
    refused: tuple[Refusal, ...] = ()  # what the server wanted to route here and may not


class Client:
    """One host's client. `run` returns when `stop` is set, and leaves the data plane and the carrier running.

    `direct` is its second path, None for a role that has none; `keeper` keeps the server's credentials, None where a
    certificate or somebody else's token says who we are. `kit` is what it takes to come over to other keys, None for never;
    `config` is then what the carrier was told, and `beside` a device that an earlier run had left besides `plane`.
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
        kit: Kit | None = None,
        config: DialConfig | None = None,
        beside: DataPlane | None = None,
    ) -> None:
        self.role = role
        self.keeper = keeper
        self.direct = direct
        self._offer, self._software, self._process = offer, software, token_hex(8)
        self.legs = [self.make_leg(plane, wireguard_port, send, config)]  # the one that packets are sent by comes first
        self.crossing = Crossing(self, kit, beside) if kit is not None else None
        self.live = Live()
        self.passage = Passage()
        self._server = Identity(control_plane, Role.SEED_SERVER)
        self.mtu_bytes = mtu_bytes
        self._guard = guard
        self._warned_s = math.inf
        self._spoken = asyncio.Event()  # the server granted or refused
        self.engine = plane.engine(self._desired, self._on_pass, resync_s)

    async def run(self, events: AsyncIterator[Event], stop: asyncio.Event) -> None:
        """`events` are the carrier's."""
        if self.crossing is not None:
            await self.crossing.adopt()
        spawn(self._reconcile(), name="client.engine", vital=True)
        self.listen(self.leg, events)
        spawn(self._beat(), name="client.beat", vital=True)
        if self.direct is not None:
            spawn(self._climb(self.direct), name="client.ladder", vital=True)
        if self.crossing is not None:
            spawn(self.crossing.run(), name="client.crossing", vital=True)
        await stop.wait()
        for leg in self.legs:
            leg.responder.close()
        if self.crossing is not None:
            await self.crossing.detach()
        if self.direct is not None:
            self.direct.responder.close()

    def set_offer(self, offer: Offer) -> None:
        """What this host could carry has changed."""
        self._offer = offer
        for leg in self.legs:
            leg.say(leg.session.set_offer(offer))
        self.engine.wake()

    # The stream's devices

    @property
    def leg(self) -> Leg:
        """What packets are sent by, as far as they go by the stream."""
        return self.legs[0]

    @property
    def plane(self) -> DataPlane:
        return self.leg.plane

    @property
    def session(self) -> Session:
        return self.leg.session

    @property
    def responder(self) -> Responder:
        return self.leg.responder

    def make_leg(
        self,
        plane: DataPlane,
        port: int,
        send: Callable[[Command], None],
        config: DialConfig | None,
        *,
        standby: bool = False,
    ) -> Leg:
        """Not one of `legs` yet."""
        keys = [(STREAM, plane.incarnation.public_key)]
        keys += [(DIRECT, self.direct.plane.incarnation.public_key)] if self.direct is not None else []
        session = Session(tuple(keys), self._offer, self._software, process=self._process, standby=standby)
        if self.direct is not None:
            session.path = self.direct.ladder.path.value
        return Leg(plane, session, port, send, config)

    def listen(self, leg: Leg, events: AsyncIterator[Event]) -> None:
        """To its carrier, for as long as there is the leg."""
        leg.listening = spawn(self._listen(leg, events), name=f"client.events.{leg.plane.ifname}", vital=True)

    def move(self) -> None:
        """Packets go by the other leg from now on."""
        self.legs.reverse()
        self._granted(self.leg)

    # What this host should be

    def _desired(self) -> Tunnel:
        device = self.leg.device(self.mtu_bytes)
        refused = frozenset(refusal.network for refusal in self.live.refused)
        grant = self.session.grant
        direct = self.direct.view(grant, time.monotonic()) if self.direct is not None else None
        sysctls = loose(leg.plane.ifname for leg in self.legs) if len(self.legs) > 1 and is_strict() else frozenset()
        beside = [
            BesideView(leg.device(self.mtu_bytes), leg.session.grant, leg.relay, sysctls) for leg in self.legs[1:]
        ]
        more = beside[0] if beside else None
        view = View(grant, self.leg.relay, refused, direct, self.session.offer, more, self.session.ended)
        return self.role.tunnel(device, view)

    async def _reconcile(self) -> None:
        if self.plane.adopted is not None:
            log.info("keeping the device as it is until the server has spoken", extra={"event": "device.kept"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._spoken.wait(), LIFETIME_MAX_S)
        await self.engine.run()

    def _on_pass(self, done: Pass) -> None:
        self.live.last_pass = done
        self.live.steps.update(type(step).__name__ for step in done.steps)
        for leg in self.legs:
            if leg.on_pass(done):
                self.engine.wake()
        if self.direct is not None and self.direct.on_pass(done, self.session.grant):
            self.engine.wake()

    # What the carrier says

    async def _listen(self, leg: Leg, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if isinstance(event, Ready):
                leg.relay = Endpoint(ip_address("127.0.0.1"), event.relay_port)
                self.engine.wake()
            elif isinstance(event, Up):
                self._up(leg, event)
            elif isinstance(event, Message):
                leg.say(leg.session.on_message(event.stream, event.text, time.monotonic()))
                self._granted(leg)
            elif isinstance(event, Down):
                self._down(leg, event)
            elif isinstance(event, DialFailed):
                self._dial_failed(leg, event)
            elif isinstance(event, Stats):
                leg.stats = event

    def _up(self, leg: Leg, event: Up) -> None:
        leg.dial_failed = None
        leg.reconnects += leg.up is not None
        leg.up = event
        try:
            identity = Identity.parse(event.identity)
        except ValueError as exc:
            leg.say((Close(event.stream, f"the server's identity: {exc}", retry_in_s=10.0),))
            return
        if identity != self._server:
            leg.say((Close(event.stream, f"the server is {identity}, not {self._server}", retry_in_s=10.0),))
            return
        log.info("connected to %s, %s", event.peer, event.via, extra={"event": "stream.up", "stream": event.stream})
        leg.say(leg.session.on_up(event.stream, event.replay, time.monotonic()))
        self._granted(leg)
        leg.poke()  # a running session learns of its new stream at once

    def _down(self, leg: Leg, event: Down) -> None:
        leg.session.on_down(event.stream)
        level = logging.INFO if event.reason in ("replaced", "retired") else logging.WARNING
        log.log(
            level,
            "stream down: %s %s",
            event.reason,
            event.detail,
            extra={"event": "stream.down", "stream": event.stream},
        )

    def _dial_failed(self, leg: Leg, event: DialFailed) -> None:
        if event.stage == "upgrade" and leg is self.leg:
            leg.aim(SYMBOLIC_TARGET)  # the device that it asked for may be gone, with the server that had it
        known, leg.dial_failed = leg.dial_failed, event
        if known is None or (known.stage, known.detail) != (event.stage, event.detail):
            log.warning(
                "cannot connect: %s: %s (again in %.1f s)",
                event.stage,
                event.detail,
                event.retry_in_s,
                extra={"event": "dial.failed", "stage": event.stage},
            )

    def _granted(self, leg: Leg) -> None:
        """The grant may have changed: check what it wants here, kick the peer if the server's device is a new one."""
        session = leg.session
        self._ask_guard()
        for path in session.kicks:
            if session.kicks[path] != leg.kicks[path]:
                spawn(self._kick(leg, path), name=f"client.kick.{path}")
        leg.kicks = session.kicks.copy()
        if self.keeper is not None and session.grant is not None and session.grant.credential is not None:
            spawn(self.keeper.keep(session.grant.credential), name="client.credential")
        if session.grant is not None and (session.grant.target or leg is self.leg):
            leg.aim(session.grant.target or SYMBOLIC_TARGET)
        if leg is self.leg and (session.grant is not None or session.state is State.REFUSED):
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

    async def _kick(self, leg: Leg, path: str) -> None:
        """Take the server's peer away; the engine sets it again, and a peer without a session handshakes with its first packet.

        WireGuard alone would notice after 15 s that the other side forgot the session (whitepaper 6.4).
        """
        plane = leg.plane if path == STREAM else self.direct.plane if self.direct is not None else None
        incarnations = leg.session.grant.incarnations() if leg.session.grant else {}
        key = incarnations[path][0] if path in incarnations else None
        if key is not None and plane is not None:
            log.info("the server's device is new: handshake at once", extra={"event": "epoch.changed", "path": path})
            try:
                await plane.wg.apply([RemovePeer(plane.ifname, key)])
            except HostError as exc:
                log.warning("kick: %s", exc, extra={"event": "kick.failed"})
            await self.engine.settled()
            leg.poke()

    # What time brings

    async def _climb(self, direct: DirectPath) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if direct.tick(self.session.grant, self.responder.age_s(now), now):
                for leg in self.legs:
                    leg.say(leg.session.set_path(direct.ladder.path.value))
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
            for leg in self.legs:
                leg.say(leg.session.tick(time.monotonic()))
                leg.send(GetStats())
            self._warn_of_the_end(self.session.unrenewed_s(time.monotonic()))
            if had_grant and self.session.grant is None:
                log.warning(
                    "the grant ran out; the tunnel is closed until the server renews it",
                    extra={"event": "grant.expired"},
                )
                self.engine.wake()

    def _warn_of_the_end(self, left_s: float | None) -> None:
        """Each time that half of what was left has passed."""
        if left_s is None:
            self._warned_s = math.inf
        elif left_s <= self._warned_s / 2:
            self._warned_s = left_s
            failed = self.leg.dial_failed
            log.warning(
                "the grant cannot be renewed and ends in %s: %s",
                duration(left_s),
                f"{failed.stage}: {failed.detail}" if failed else "the server does not answer, or our credential ends",
                extra={"event": "grant.ending", "left_s": round(left_s)},
            )

    async def _look(self) -> None:
        try:
            for leg in self.legs:
                await leg.look()
            self.passage.note(self.plane.net.firewall_counters(), time.monotonic())
        except HostError as exc:
            log.debug("cannot read the device: %s", exc, extra={"event": "device.unreadable"})
            return
        if self.direct is not None:
            await self.direct.look(self.session.grant)
