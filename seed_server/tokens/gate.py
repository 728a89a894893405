"""Answers the carrier's question whose a token is. Stands between the carrier's events and the server, which never sees one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

from agent.carrier.api import Admit, Command, Event, Presented, Turn
from agent.onetime import is_one_time
from agent.run import spawn
from seed_server.tokens.desk import Desk
from seed_server.tokens.keys import Verifier
from seed_server.tokens.verify import Refused, Verified

log = logging.getLogger("rhizome.seed.tokens")


class Gate:
    """`wall` is the time of day; `desk` exchanges one-time tokens, None where there are none."""

    def __init__(
        self, verifier: Verifier, send: Callable[[Command], None], wall: Callable[[], float], desk: Desk | None = None
    ) -> None:
        self._verifier = verifier
        self._desk = desk
        self._send = send
        self._wall = wall

    async def pass_on(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """All events but the questions, which are answered one beside the other."""
        async for event in events:
            if isinstance(event, Presented):
                spawn(self._judge(event), name=f"seed.token.{event.visit}")
            else:
                yield event

    async def _judge(self, presented: Presented) -> None:
        try:
            verified = await self._verified(presented)
        except Refused as exc:
            self._send(Turn(presented.visit, exc.status, exc.cause, str(exc)))
            return
        log.debug("a token of %s is good", verified.identity, extra={"event": "token.good"})
        self._send(Admit(presented.visit, str(verified.identity), verified.ends_at, verified.ticket))

    async def _verified(self, presented: Presented) -> Verified:
        if not is_one_time(presented.token):
            return await self._verifier.verify(presented.token, self._wall())
        if self._desk is None:
            raise Refused("enrolment_off", "this server takes no enrolment tokens (enrolment_file)")
        return await self._desk.exchange(presented.token, presented.peer, self._wall())
