"""Connections that were turned away before they became streams: counted by cause, said at a bounded rate."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from agent.carrier.api import Turned
from agent.logs import Limited

log = logging.getLogger("rhizome.carrier.listener")

#: A flood of strangers is one event a second for the daemon.
PUBLISH_EVERY_S = 1.0
#: Health checks of load balancers connect and close; that is nothing to tell people about.
_EVERYDAY = frozenset({"closed"})


class Turnaways:
    """Causes are fixed words of ours, so their number is bounded."""

    def __init__(self, publish: Callable[[Turned], None]) -> None:
        self._publish = publish
        self._counts: Counter[str] = Counter()
        self._last = ""
        self._limited = Limited(log)
        self._told_at = -PUBLISH_EVERY_S
        self._later: asyncio.TimerHandle | None = None

    def count(self, cause: str, peer: str, words: str) -> None:
        """One connection was turned away. `words` says why, `peer` who it was."""
        self._counts[cause] += 1
        self._last = f"{peer}: {words}"
        level = logging.DEBUG if cause in _EVERYDAY else logging.WARNING
        fields = {"event": "connection.turned_away", "peer": peer, "reason": cause}
        self._limited.log(level, cause, "turned away %s: %s", peer, words, extra=fields)
        loop = asyncio.get_running_loop()
        if self._later is None:
            # The first at once, the rest of a second together.
            self._later = loop.call_at(max(loop.time(), self._told_at + PUBLISH_EVERY_S), self._tell)

    def turned(self) -> Turned:
        return Turned(tuple(sorted(self._counts.items())), self._last)

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()

    def _tell(self) -> None:
        self._later = None
        self._told_at = asyncio.get_running_loop().time()
        self._publish(self.turned())
