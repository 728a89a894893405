"""An attached daemon: it hears the companion's events, and starts the companion again when it dies."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Generic, Self, TypeVar

from agent.backoff import Backoff
from agent.companion.attach import START_TIMEOUT_S, Companion, Line, find_or_start, make_directory
from agent.companion.lines import Displaced as DisplacedLine
from agent.companion.lines import Hello
from agent.errors import BadMessage, HostError, Retry, RhizomeError

log = logging.getLogger("rhizome.companion.client")

#: A companion that dies as soon as it is started is started again less and less often.
RESPAWN_FIRST_S, RESPAWN_CAP_S = 0.05, 5.0
SETTLED_S = 10.0

E = TypeVar("E")


class Displaced(RhizomeError):
    """Another daemon has attached to this companion, and this one must not take it back."""

    retry = Retry.NEVER


class CompanionClient(ABC, Generic[E]):
    """Not more than one task iterates `events`, and as long as it does, the companion is kept alive."""

    def __init__(self, kind: Companion, path: Path) -> None:
        self._kind = kind
        self._path = path
        self._line: Line | None = None
        self._pending: deque[E] = deque()
        self._since = 0.0
        self._detached = False

    async def attach(self) -> Self:
        """Attach to the companion, which is started when there is none (or none of our build).

        Raises HostError when it cannot be started, or rejects the configuration.
        """
        make_directory(self._path.parent)
        await self._attach()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await self._next()
            if first is None:
                raise HostError(f"the {self._kind.name} process ended at once: its last lines on stderr say why")
            if refusal := self._refusal(first):
                raise HostError(refusal)
        except TimeoutError as exc:
            await self.detach()
            raise HostError(f"the {self._kind.name} process does not answer") from exc
        except BaseException:
            await self.detach()
            raise
        self._pending.append(first)
        return self

    async def events(self) -> AsyncIterator[E]:
        """Everything from the first answer on. Ends after `detach`. Raises Displaced when another daemon attaches.

        When the companion dies, a new one is started and greeted.
        """
        backoff = Backoff(RESPAWN_FIRST_S, RESPAWN_CAP_S)
        while not self._detached:
            if self._pending:
                yield self._pending.popleft()
                continue
            event = await self._next()
            if event is not None:
                yield event
            elif not self._detached:
                for last in self._on_lost():
                    yield last
                if _now() - self._since > SETTLED_S:
                    backoff.reset()
                await self._revive(backoff)

    def send(self, command: object) -> None:
        """Say it to the companion. What is said while there is none is lost."""
        if self._line is not None:
            self._line.send(command)

    async def detach(self) -> None:
        """Leave; the companion goes on without a daemon."""
        self._detached = True
        if self._line is not None:
            await self._line.close()
            self._line = None

    # What a daemon says and hears

    @abstractmethod
    def _greeting(self) -> Iterable[object]:
        """The commands to begin with, each time."""

    @abstractmethod
    def _refusal(self, event: E) -> str:
        """The words of an event that rejects the greeting; empty for any other."""

    def _on_event(self, event: E) -> None:
        """Take note of an event before it is told."""

    def _on_lost(self) -> Iterable[E]:
        """What the death of the companion means, told as events."""
        return ()

    async def _attach(self) -> None:
        self._line = await find_or_start(self._kind, self._path)
        for command in self._greeting():
            self._line.send(command)
        self._since = _now()

    async def _revive(self, backoff: Backoff) -> None:
        name = self._kind.name
        log.warning("lost the %s process; finding or starting one", name, extra={"event": f"{name}.lost"})
        while not self._detached:
            if self._line is not None:
                await self._line.close()
                self._line = None
            await asyncio.sleep(backoff.next())
            try:
                await self._attach()
                return
            except HostError as exc:
                log.error("%s", exc, extra={"event": f"{name}.start_failed"})

    async def _next(self) -> E | None:
        """The next event, None at the end of the line."""
        while self._line is not None:
            try:
                event = await self._line.receive()
            except BadMessage as exc:
                log.error(
                    "the %s is not understood: %s", self._kind.name, exc, extra={"event": f"{self._kind.name}.bad"}
                )
                return None
            if isinstance(event, Hello):
                continue
            if isinstance(event, DisplacedLine):
                name = self._kind.name
                raise Displaced(f"another daemon has taken over this {name}: is the same daemon started twice?")
            if event is not None:
                self._on_event(event)
            return event  # type: ignore[no-any-return]
        return None


def _now() -> float:
    return asyncio.get_running_loop().time()
