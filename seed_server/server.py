"""The seed server: admits clients, keeps the hub device as they need it, and watches with a canary that packets cross.

Order matters when a client enrols: its address is committed in the IPAM, then its peer stands on the device, and only then
is the grant sent, so its first handshake meets a known key.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType

from agent.canary import TICK_S
from agent.carrier.api import Close, Command, Down, Event, GetStats, Message, Send, Stats, Turned, Up
from agent.denylist import DenyList
from agent.engine import Pass
from agent.errors import BadMessage, PoolExhausted, StoreError
from agent.identity import Identity
from agent.keys import generate_preshared_key
from agent.messages import STREAM, Drain, Enroll, Facts, Refuse, encode, parse
from agent.model import IPAddress, PublicKey, Tunnel
from agent.pulse import Standing
from agent.run import spawn
from seed_server import desired
from seed_server.absent import heard
from seed_server.adopted import without_adopted
from seed_server.audit import Audit, Journal
from seed_server.charter import Charter
from seed_server.direct import DirectSide
from seed_server.generations import Generations
from seed_server.live import Live
from seed_server.notes import NOT_KEPT, note_grant, note_refused_prefixes
from seed_server.once import OnceFile, remember
from seed_server.preshared import renewed
from seed_server.registry import (
    Admitted,
    Client,
    Once,
    Registry,
    admit,
    expire,
    precheck,
    stream_down,
    update_facts,
    without,
)
from seed_server.roster import Roster
from seed_server.warden import EXPELS, REVOKED, Warden, keys_named

log = logging.getLogger("rhizome.seed")

BEAT_S = 1.0
ENROLLS_AT_ONCE = 1024
PEER_IN_PLACE_S = 5.0  # how long an enrolling client waits for its peer to stand on the device
STATUS_EVERY = 3  # beats between two looks at WireGuard's counters
PEERS_PER_BEAT = 250  # and of thousands they and the carrier's are counted less often

#: The addresses of a client: committed in the IPAM when it returns. Raises StoreError (PoolExhausted when there is none).
Allocate = Callable[[Identity], Awaitable[tuple[IPAddress, ...]]]


class SeedServer:
    """One control plane's server. `run` returns when `stop` is set, and leaves the data plane running. `known` is which
    sidecar has which tunnel address, as the IPAM says at start; `warden` keeps out who is not let in; `left` are sidecars without
    a daemon, as `once` remembers them."""

    def __init__(
        self,
        charter: Charter,
        stream: Generations,
        allocate: Allocate,
        send: Callable[[Command], None],
        *,
        resync_s: float,
        warden: Warden,
        audit: Audit | None = None,
        known: Mapping[IPAddress, Identity] = MappingProxyType({}),
        direct: DirectSide | None = None,
        once: OnceFile | None = None,
        left: Iterable[Client] = (),
    ) -> None:
        self.charter = charter
        self.direct = direct
        self.stream = stream
        self.live = Live()
        self.roster = Roster(charter, stream, known, direct, left)
        self._once = once
        self.warden = warden
        self.journal = Journal(log, audit)
        self._allocate = allocate
        self._send = send
        self._peers = desired.Peers()
        self._early: dict[int, Facts | None] = {}  # by stream: what was said while its enroll was being judged
        self._enrolling = asyncio.Semaphore(ENROLLS_AT_ONCE)
        self.engine = stream.current.engine(self._desired, self._on_pass, resync_s)

    async def run(self, events: AsyncIterator[Event], stop: asyncio.Event) -> None:
        """`events` are the carrier's."""
        spawn(self.engine.run(), name="seed.engine", vital=True)
        spawn(self._listen(events), name="seed.events", vital=True)
        spawn(self._beat(), name="seed.beat", vital=True)
        spawn(self._ask(), name="seed.canary", vital=True)
        words = f"the server of {self.charter.policy.control_plane}"
        epoch, denied = self.stream.current.incarnation.epoch, len(self.warden.denied)
        self.journal.note(logging.INFO, "server.started", f"{words} decides", epoch=epoch, denied=denied)
        await stop.wait()
        self.journal.note(logging.INFO, "server.stopped", f"{words} ends; packets go on")
        self.roster.close()

    @property
    def registry(self) -> Registry:
        """Who is in."""
        return self.roster.registry

    @property
    def carries(self) -> desired.Carries:
        """Identity text -> what this client carries now."""
        return self.roster.carrying.carries

    # What the host and the clients should have

    def _desired(self) -> Tunnel:
        device, *more = [self.stream.device(plane) for plane in self.stream.planes]
        second = desired.Second(self.direct.device(), self.direct.preshared_key) if self.direct is not None else None
        next_ = more[0] if more else None
        known, refused, sysctls = self._peers, self.roster.unreachable, self.stream.sysctls()
        return desired.tunnel(device, self.charter, self.registry, self.carries, known, second, refused, next_, sysctls)

    def _on_pass(self, done: Pass) -> None:
        self.live.last_pass = done
        self.live.steps.update(type(step).__name__ for step in done.steps)
        anew = self.direct is not None and self.direct.on_pass(done)
        if self.stream.on_pass(done, self.charter.addresses[0]) or anew:
            self.engine.wake()  # the alias carries the new epoch
            self.tell(self.registry.clients)

    def commit(self, registry: Registry, changed: Iterable[str]) -> None:
        """Take `registry` as the truth, with what follows for these clients."""
        self.roster.commit(registry, changed)
        self.engine.wake()

    def tell(self, keys: Iterable[str]) -> None:
        """Send their grants as they are now, on each stream that they have."""
        now = time.monotonic()
        for key in tuple(keys):
            client = self.registry.clients[key]
            direct = self.direct.offer(client) if self.direct is not None else None
            for leg in client.legs:
                if leg.stream is not None:
                    is_first = leg.device == client.device
                    credential = self.live.credential(client.identity, leg.stream) if is_first else None
                    grant = self.stream.grant(leg, self.charter, client, now, direct, credential)
                    self._send(Send(leg.stream, encode(grant)))

    # What the carrier says

    async def _listen(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if isinstance(event, Up):
                self._up(event)
            elif isinstance(event, Message):
                self._message(event.stream, event.text)
            elif isinstance(event, Down):
                self._down(event)
            elif isinstance(event, Stats):
                self.live.stats = event
            elif isinstance(event, Turned):
                self.live.turn_away(event, self.journal)

    def _up(self, event: Up) -> None:
        try:
            identity = Identity.parse(event.identity)
        except ValueError as exc:
            self._send(Close(event.stream, f"identity: {exc}"))
            return
        self.live.streams[event.stream] = identity, event
        words = f"stream up: {identity} from {event.peer}"
        self.journal.note(logging.INFO, "stream.up", words, identity, stream=event.stream, address=event.peer)
        if refuse := self.warden.at_the_door(identity):
            words = f"{identity} is not let in: {refuse.text}"
            self.journal.note(
                logging.WARNING, "enroll.refused", words, identity, stream=event.stream, reason=refuse.reason
            )
            self.commit(without_adopted(self.registry, DenyList(keys=keys_named(event.replay))), ())
            self._expel(identity, refuse)
            return
        for text in event.replay:
            self._message(event.stream, text)

    def _down(self, event: Down) -> None:
        identity, _ = self.live.streams.pop(event.stream, (None, None))
        if identity is not None:
            words = f"stream down: {identity}: {event.reason} {event.detail}"
            self.journal.note(logging.INFO, "stream.down", words, identity, stream=event.stream, reason=event.reason)
            key = str(identity)
            self.commit(stream_down(self.registry, key, event.stream, time.monotonic()), (key,))

    def _message(self, stream: int, text: str) -> None:
        identity, _ = self.live.streams.get(stream, (None, None))
        if identity is None:
            return
        try:
            message = parse(text)
        except BadMessage as exc:
            self.live.not_let_in["malformed"] += 1
            self._send(Close(stream, str(exc)))
            return
        if isinstance(message, Enroll):
            self._early[stream] = None
            spawn(self._enroll(stream, identity, message), name=f"seed.enroll.{stream}")
        elif isinstance(message, Facts):
            if stream in self._early:
                self._early[stream] = message
                return
            device = self._device_of(stream)
            admitted = update_facts(self.registry, self.charter.policy, identity, message, device)
            if admitted is not None:
                self._admitted(admitted)
                self.tell([str(identity)])

    # Who is kept out

    def deny(self, denied: DenyList) -> None:
        """The deny list is this now; who is on it goes at once."""
        if denied != self.warden.denied:
            words = f"the deny list has {len(denied)} entries"
            self.journal.note(logging.INFO, "policy.changed", words, denied=len(denied))
        self.warden.denied = denied
        self.commit(without_adopted(self.registry, denied), ())
        for client in tuple(self.registry.clients.values()):
            if self.warden.expelled(client):
                self._expel(client.identity, Refuse(REVOKED, f"{client.identity} was revoked"))
        for identity, _ in tuple(self.live.streams.values()):
            if refuse := self.warden.at_the_door(identity):
                self._expel(identity, refuse)

    def _expel(self, identity: Identity, refuse: Refuse) -> None:
        """Tell all its streams and close them, and take away its peer. Its address stays its own."""
        for stream, (holder, _) in tuple(self.live.streams.items()):
            if holder == identity:
                self._send(Send(stream, encode(refuse)))
                self._send(Close(stream, f"refused: {refuse.reason}"))
        client = self.registry.clients.get(str(identity))
        if client is not None:
            words = f"{identity} is out: {refuse.text}"
            self.journal.note(logging.WARNING, "client.expelled", words, identity, reason=refuse.reason)
            self.commit(without(self.registry, (client,)), (str(identity),))

    # Admission

    async def _enroll(self, stream: int, identity: Identity, enroll: Enroll) -> None:
        known = self.registry.clients.get(str(identity))
        renewal = known is not None and any(leg.stream == stream for leg in known.legs)
        why = ""
        async with self._enrolling:
            if early := self._early.get(stream):  # said again after a restart: what counts is the last word
                enroll = replace(enroll, standby=early.standby)
            try:
                refuse = await self._admit(stream, identity, enroll)
            except StoreError as exc:
                refuse, why = NOT_KEPT, str(exc)
        facts = self._early.pop(stream, None)
        if refuse is None and facts is not None:
            admitted = update_facts(self.registry, self.charter.policy, identity, facts, self._device_of(stream))
            if admitted is not None:
                self._admitted(admitted)
        if refuse is None:
            self.tell([str(identity)])
            if client := self.registry.clients.get(str(identity)):
                note_grant(self.journal, client, known, stream, time.monotonic())
            if renewal and self._left_s(stream) < self.charter.policy.lifetime_s:
                self._send(Send(stream, encode(Drain("your credential ends: come again with a newer one"))))
            return
        self.live.not_let_in[refuse.reason] += 1
        words = f"enroll of {identity} refused: {refuse.reason}: {why or refuse.text}"
        self.journal.note(logging.WARNING, "enroll.refused", words, identity, stream=stream, reason=refuse.reason)
        if refuse.reason in EXPELS:
            self._expel(identity, refuse)
        else:
            self._send(Send(stream, encode(refuse)))

    async def _admit(self, stream: int, identity: Identity, enroll: Enroll) -> Refuse | None:
        """None: the client is in and its peer stands on the device, or its stream has gone meanwhile. Raises StoreError."""
        own_keys, policy, device = self._own_keys(), self.charter.policy, self._device_of(stream)
        _, up = self.live.streams.get(stream, (None, None))
        if refuse := self.warden.judge(up, identity, enroll, time.monotonic()):
            return refuse
        if refuse := precheck(self.registry, policy, own_keys, identity, enroll, device):
            return refuse
        try:
            addresses = await self._allocate(identity)
        except PoolExhausted as exc:
            return Refuse("pool-exhausted", str(exc), retry_after_s=30.0)
        if stream not in self.live.streams:
            return None
        if refuse := precheck(self.registry, policy, own_keys, identity, enroll, device):
            return refuse  # somebody else was faster while we waited for the address
        psk = self.roster.adopted_psk(dict(enroll.public_keys).get(STREAM)) or generate_preshared_key()
        now, left_s = time.monotonic(), self._left_s(stream)
        ends_at = self.live.streams[stream][1].credential_ends_at
        once = Once(ends_at or 0.0, now + left_s) if enroll.once else None
        asked = self.stream.has_come(addresses)
        more = psk, stream, now, left_s, once, device, asked
        self._admitted(admit(self.registry, policy, identity, enroll, addresses, *more))
        try:
            if once is not None:
                await remember(self._once, self.registry.clients.values())
            await asyncio.wait_for(self.engine.settled(), PEER_IN_PLACE_S)
        except TimeoutError:
            error = self.live.last_pass.error if self.live.last_pass else None
            return Refuse("not-ready", f"the server's device is not ready: {error or 'busy'}", retry_after_s=1.0)
        return None

    def _own_keys(self) -> frozenset[PublicKey]:
        direct = {self.direct.plane.incarnation.public_key} if self.direct is not None else frozenset[PublicKey]()
        return self.stream.keys | direct

    def _device_of(self, stream: int) -> str:
        """Which device of ours it leads to."""
        _, up = self.live.streams.get(stream, (None, None))
        return self.stream.by_port(up.wireguard_port if up is not None else 0).ifname

    def _left_s(self, stream: int) -> float:
        return self.warden.left_s(self.live.streams[stream][1]) if stream in self.live.streams else math.inf

    def _admitted(self, admitted: Admitted) -> None:
        client = admitted.client
        known = self.registry.clients.get(str(client.identity))
        self.live.refused.update(refusal.reason for refusal in client.refused)
        note_refused_prefixes(self.journal, client, known)
        self.commit(admitted.registry, (str(client.identity),))

    async def renew_preshared_keys(self, keys: Iterable[str]) -> None:
        """New preshared keys for these clients: on the device, then told."""
        fresh = {key: generate_preshared_key() for key in keys if key in self.registry.clients}
        self.commit(renewed(self.registry, fresh, time.monotonic()), fresh)
        with suppress(TimeoutError):  # the engine goes on trying, and the clients have to know then, too
            await asyncio.wait_for(self.engine.settled(), PEER_IN_PLACE_S)
        self.tell(key for key in fresh if key in self.registry.clients)

    # What time brings

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._judge(time.monotonic())
            self.stream.ask()
            if self.direct is not None:
                self.direct.prober.ask()

    def _judge(self, now: float) -> None:
        """Say who can be relied on, and take note of what moves."""
        carrying = self.roster.carrying
        version, moves = carrying.version, carrying.tally.moves
        for who, pulse in self.roster.judge(now):
            if pulse.standing is Standing.LOST:
                words = f"{who.name} is lost: {pulse.cause.words}"
                self.journal.note(logging.WARNING, "client.lost", words, who, reason=pulse.cause.value)
            elif pulse.standing is Standing.WELL:
                self.journal.note(logging.INFO, "client.well", f"{who.name} is well", who)
        if self.roster.refuse(now) or version != carrying.version:
            self.engine.wake()
        if moved := carrying.tally.moves - moves:
            self.journal.note(logging.INFO, "prefixes.moved", f"{moved} shared prefixes change hands", count=moved)

    async def _beat(self) -> None:
        for beat in itertools.count():
            crowd = len(self.registry.clients) // PEERS_PER_BEAT
            if beat % max(STATUS_EVERY, crowd) == 0:
                await self._look()
            await asyncio.sleep(BEAT_S)
            registry = expire(self.registry, time.monotonic())
            if registry is not self.registry:
                gone = self.registry.clients.keys() - registry.clients.keys()
                for who in [self.registry.clients[key].identity for key in gone]:
                    self.journal.note(logging.WARNING, "grant.expired", f"{who} is out: its grant was not renewed", who)
                self.commit(registry, gone)
            for who, up in tuple(self.live.streams.values()):
                if self.warden.left_s(up) <= 0:
                    words = "its certificate or token has ended"
                    self.journal.note(logging.INFO, "credential.ended", f"{who}: {words}", who, stream=up.stream)
                    self._send(Close(up.stream, words))
            with suppress(StoreError):  # told when one wants in; what is remembered too long harms nobody
                await remember(self._once, self.registry.clients.values())
            if beat % max(1, crowd) == 0:
                self._send(GetStats())

    async def _look(self) -> None:
        await self.stream.look()
        if self.direct is not None:
            await self.direct.look()
            handshakes = self.direct.handshakes()
            self.roster.commit(heard(self.registry, self.charter.policy, handshakes, time.monotonic()), ())
