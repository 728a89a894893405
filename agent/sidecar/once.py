"""A sidecar that sets its pod up, sees packets cross, and leaves: for init containers (docs/adr/0016-once.md).

It has the direct device alone, which the kernel keeps alive without anybody: the stream would need a process. The server is told so
when it is asked for the grant, and answers only when it has written down whose key it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable

from agent.carrier.api import Close, Command, DialFailed, Event, Message, Up
from agent.client.direct import TICK_S, DirectPath
from agent.client.role import Guard
from agent.engine import Pass
from agent.errors import Refused, RemoteError
from agent.health import duration
from agent.identity import Identity, Role
from agent.ladder import ANSWERS_S
from agent.messages import DIRECT, Grant, Offer
from agent.model import IPNetwork, Tunnel
from agent.run import spawn
from agent.session import Session
from agent.sidecar.desired import reachable, without_daemon

log = logging.getLogger("rhizome.once")


class Visit:
    """One run. `run` returns when packets cross and everything stands that is to stay."""

    def __init__(
        self,
        path: DirectPath,
        send: Callable[[Command], None],
        guard: Guard,
        *,
        control_plane: str,
        port: int,
        software: str,
        resync_s: float,
    ) -> None:
        key = path.plane.incarnation.public_key
        self.session = Session(((DIRECT, key),), Offer(), software, path=DIRECT, once=True)
        self.up: Up | None = None
        self._path = path
        self._send = send
        self._guard = guard
        self._server = Identity(control_plane, Role.SEED_SERVER)
        self._port = port
        self._grant: Grant | None = None
        self._refused: frozenset[IPNetwork] = frozenset()
        self._cause = "no connection to the server yet"
        self._engine = path.plane.engine(self._desired, self._on_pass, resync_s)

    async def run(self, events: AsyncIterator[Event], stop: asyncio.Event, timeout_s: float) -> None:
        """`events` are the carrier's. Raises Refused, and RemoteError when it takes longer than `timeout_s` or `stop` is set."""
        tasks = [spawn(self._listen(events), name="once.events", vital=True)]
        until = time.monotonic() + timeout_s
        try:
            while not self._crosses(now := time.monotonic()):
                self._give_up(now, until, stop, timeout_s)
                await asyncio.sleep(TICK_S)
                self._say(self.session.tick(time.monotonic()))
                if self._grant is None:
                    continue
                if len(tasks) == 1:
                    tasks.append(spawn(self._engine.run(), name="once.engine", vital=True))
                if self._path.tick(self._grant, None, time.monotonic()):
                    self._engine.wake()
            async with asyncio.timeout(max(1.0, until - now)):
                await self._engine.settled()
        except TimeoutError:
            raise RemoteError(f"once: the host is not as it should be after {timeout_s:g} s: {self._cause}") from None
        finally:
            self._path.responder.close()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert self._grant is not None and self._grant.silence_s is not None
        log.info(
            "packets cross; the server keeps this pod's key until there was no handshake for %s, or the certificate ends",
            duration(self._grant.silence_s),
            extra={"event": "once.done", "ifname": self._path.plane.ifname},
        )

    def _crosses(self, now: float) -> bool:
        age_s = self._path.responder.age_s(now)
        return self._path.in_use and age_s is not None and age_s < ANSWERS_S

    def _give_up(self, now: float, until: float, stop: asyncio.Event, timeout_s: float) -> None:
        refusal = self.session.refusal
        if refusal is not None and refusal.retry_after_s is None:
            raise Refused(refusal.reason, refusal.text)
        if stop.is_set():
            raise RemoteError(f"once: stopped before packets crossed: {self._cause}")
        if now > until:
            raise RemoteError(f"once: no packet crossed within {timeout_s:g} s: {self._cause}")

    def _desired(self) -> Tunnel:
        assert self._grant is not None
        view = self._path.view(self._grant, time.monotonic(), self._port)
        assert view is not None
        return without_daemon(view, self._grant, self._refused)

    def _on_pass(self, done: Pass) -> None:
        if done.error is not None:
            self._cause = str(done.error)
        if self._path.on_pass(done, self._grant):
            self._engine.wake()

    async def _listen(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if isinstance(event, Up):
                self._connected(event)
            elif isinstance(event, Message):
                self._say(self.session.on_message(event.stream, event.text, time.monotonic()))
                self._answered()
            elif isinstance(event, DialFailed):
                self._cause = f"{event.stage}: {event.detail}"

    def _connected(self, event: Up) -> None:
        self.up = event
        if event.identity != str(self._server):
            self._cause = f"the server is {event.identity or 'nobody'}, not {self._server}"
            self._say((Close(event.stream, self._cause, retry_in_s=10.0),))
            return
        self._cause = "the server does not answer"
        self._say(self.session.on_up(event.stream, (), time.monotonic()))

    def _answered(self) -> None:
        grant, refusal = self.session.grant, self.session.refusal
        if refusal is not None:
            self._cause = f"refused: {refusal.reason}: {refusal.text}"
        if grant is None or grant == self._grant:
            return
        if grant.direct is None or grant.silence_s is None:
            raise RemoteError("once: the server granted no path that stays: is it an older version?")
        self._grant = grant
        where = " or ".join(map(str, grant.direct.endpoints))
        self._cause = f"no canary comes by UDP from {where}: does a network policy let it through?"
        refusals = self._guard(reachable(grant))
        for found in refusals:
            log.warning("%s", found, extra={"event": "route.refused", "reason": found.reason.value})
        self._refused = frozenset(found.network for found in refusals)
        self._engine.wake()

    def _say(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self._send(command)
