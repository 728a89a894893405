"""Carries out what agent.client.succession decides: a client comes over to a new device, and the old one goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Never

from agent.carrier.client import CarrierClient
from agent.client.leg import Leg
from agent.client.succession import RETRY_S, Act, Beside, Situation, decide
from agent.dataplane import DataPlane
from agent.errors import RhizomeError
from agent.session import State

if TYPE_CHECKING:
    from agent.client.client import Client
    from agent.client.kit import Kit

log = logging.getLogger("rhizome.client.keys")

TICK_S = 0.25
SETTLED_S = 10.0
#: What an adopted carrier's next stream asks for until the server has said again where it leads: never for the device in use.
NOWHERE = "wg-00000000"


class Crossing:
    """Mutable; `rotations` counts what has become of new keys: done or failed. `beside` is the device that an earlier run had
    besides the one that packets are sent by."""

    def __init__(self, client: Client, kit: Kit, beside: DataPlane | None) -> None:
        self._client = client
        self._kit = kit
        self._found = beside
        self._since = 0.0
        self._is_old = False
        self._not_before = 0.0
        self._lines: dict[str, CarrierClient] = {}  # of devices that were not the first one at start, by name
        self.rotations: Counter[str] = Counter()

    @property
    def words(self) -> str:
        """What goes on, empty for nothing."""
        if len(self._client.legs) > 1:
            return "new keys are in use, the old ones are going" if self._is_old else "new keys are being tried"
        waits = self._not_before > time.monotonic()
        return "no packet crossed with new keys, so the old ones stay in use for now" if waits else ""

    async def adopt(self) -> None:
        """What an earlier run left in the middle."""
        if self._found is not None:
            plane, self._found = self._found, None
            await self._add(plane, NOWHERE, is_old=plane.born < self._client.plane.born)

    async def run(self) -> Never:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._act(decide(self._situation(time.monotonic()), time.monotonic()))
            except (RhizomeError, TimeoutError) as exc:
                self._not_before = time.monotonic() + RETRY_S
                self.rotations["failed"] += 1
                words = str(exc) or "the device is not ready in time"
                log.warning("new WireGuard keys: %s", words, extra={"event": "keys.failed"})

    async def detach(self) -> None:
        """Leave; carriers go on."""
        for line in self._lines.values():
            await line.detach()

    def _situation(self, now: float) -> Situation:
        leg, *more = self._client.legs
        grant = leg.session.grant
        return Situation(
            granted=grant is not None,
            successor=grant.successor if grant is not None else "",
            canary_age_s=leg.responder.age_s(now),
            confirmed=leg.session.granted_at is not None and leg.session.granted_at > self._since,
            beside=self._beside(more[0], now) if more else None,
            not_before=self._not_before,
        )

    def _beside(self, leg: Leg, now: float) -> Beside:
        grant = leg.session.grant
        return Beside(
            since=self._since,
            is_old=self._is_old,
            target=grant.target if grant is not None else "",
            canary_age_s=leg.responder.age_s(now),
            refused=leg.session.state is State.REFUSED,
        )

    async def _act(self, act: Act) -> None:
        """Raises RhizomeError, TimeoutError."""
        client = self._client
        if act is Act.MAKE:
            assert client.session.grant is not None
            plane = await self._kit.make(self._kit.names.other(client.plane.ifname))
            log.info("the server asks for new WireGuard keys", extra={"event": "keys.begun"})
            await self._add(plane, client.session.grant.successor, is_old=False)
        elif act is Act.MOVE:
            client.move()
            self._since, self._is_old = time.monotonic(), True
            with contextlib.suppress(TimeoutError):  # our routes first, then the server's
                await asyncio.wait_for(client.engine.settled(), SETTLED_S)
            for leg in client.legs:
                leg.say(leg.session.set_standby(leg is not client.leg))
            log.info("packets go by the new WireGuard keys", extra={"event": "keys.moved"})
        elif act is Act.GIVE_UP:
            self._not_before = time.monotonic() + RETRY_S
            await self._remove(client.legs[1])
            self.rotations["failed"] += 1
            log.warning(
                "no packet crossed with new WireGuard keys; the old ones stay in use, and it is tried again in %.0f s",
                RETRY_S,
                extra={"event": "keys.failed"},
            )
        elif act is Act.TURN_BACK:
            log.info("the server wants no new WireGuard keys any more", extra={"event": "keys.turned_back"})
            await self._remove(client.legs[1])
        elif act is Act.LEAVE:
            await self._remove(client.legs[1])
            self.rotations["done"] += 1
            log.info("the old WireGuard keys are gone", extra={"event": "keys.replaced"})

    async def _add(self, plane: DataPlane, target: str, *, is_old: bool) -> None:
        client, kit = self._client, self._kit
        config = kit.config_of(plane.ifname, target)
        line = await kit.dial(config)
        self._lines[plane.ifname] = line
        leg = client.make_leg(plane, config.wireguard_port, line.send, config, standby=True)
        self._since, self._is_old = time.monotonic(), is_old
        client.legs.append(leg)
        client.listen(leg, line.events())
        client.engine.wake()

    async def _remove(self, leg: Leg) -> None:
        """Its routes and rules, then the device, then its carrier."""
        client = self._client
        client.legs.remove(leg)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.engine.settled(), SETTLED_S)
        leg.responder.close()
        if leg.listening is not None:
            leg.listening.cancel()
        if (line := self._lines.pop(leg.plane.ifname, None)) is not None:
            await line.detach()
        await self._kit.remove(leg.plane.ifname)
