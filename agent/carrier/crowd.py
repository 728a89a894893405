"""Connections that are no streams yet, in crowds of bounded size."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Visitor:
    """A connection that is no stream yet. `silent`: not a byte has come from it. `turned`: it was turned away and is only
    being read out. `seated`: its socket is the hub's now."""

    sock: socket.socket
    peer: str
    since: float
    silent: bool = True
    turned: bool = False
    seated: bool = False
    task: asyncio.Task[None] | None = None


class Room:
    """A bounded crowd, oldest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._visitors: dict[Visitor, None] = {}

    def enter(self, visitor: Visitor) -> None:
        self._visitors[visitor] = None

    def leave(self, visitor: Visitor) -> None:
        self._visitors.pop(visitor, None)

    @property
    def is_full(self) -> bool:
        return len(self._visitors) >= self.limit

    def who_has_to_go(self, before: float) -> Visitor | None:
        """The oldest that is of no use, or else the oldest if it came before that time."""
        oldest = next(iter(self._visitors), None)
        useless = next((visitor for visitor in self._visitors if visitor.silent or visitor.turned), None)
        return useless or (oldest if oldest is not None and oldest.since <= before else None)

    def __len__(self) -> int:
        return len(self._visitors)
