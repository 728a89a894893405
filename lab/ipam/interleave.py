"""All interleavings of a few actors on one store, by driving their coroutines by hand: no loop, no clock, no chance.

An actor stops before each read and each write of the store; each time, each actor that is not done may be next. Interleavings that lead to the same
state (the same ledger, and every actor having seen and written the same) are continued only once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

from agent.errors import Conflict
from ipam.ledger import Ledger
from ipam.stores import Store, Version
from ipam.stores.memory import MemoryStore


@coroutine
def _stop() -> Generator[None, None, None]:
    yield


@dataclass
class Stepped:
    """A store at whose every call its actor stops; `seen` is all that the actor knows of it."""

    store: MemoryStore
    seen: list[object] = field(default_factory=list)

    async def read(self) -> tuple[Ledger, Version]:
        await _stop()
        ledger, version = await self.store.read()
        self.seen.append(content(ledger))
        return ledger, version

    async def write(self, ledger: Ledger, version: Version) -> None:
        await _stop()
        try:
            await self.store.write(ledger, version)
        except Conflict:
            self.seen.append("conflict")
            raise
        self.seen.append("written")

    async def changed(self, version: Version) -> None:
        raise AssertionError("nobody waits here")


def content(ledger: Ledger) -> object:
    """Equal for equal ledgers."""
    return frozenset((a.owner, a.blocks, a.expires, a.rests_until) for a in ledger)


@dataclass
class World:
    """One store and its actors. `start` makes an actor's coroutine on a store of its own view."""

    starts: Sequence[Callable[[Store], Coroutine[Any, Any, Any]]]
    memory: MemoryStore = field(default_factory=MemoryStore)
    views: list[Stepped] = field(default_factory=list)
    running: list[Coroutine[Any, Any, Any]] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)

    def begin(self) -> None:
        self.views = [Stepped(self.memory) for _ in self.starts]
        self.running = [start(view) for start, view in zip(self.starts, self.views, strict=True)]
        for actor in range(len(self.starts)):
            self.step(actor)

    def step(self, actor: int) -> None:
        """To the actor's next stop, or its end."""
        try:
            self.running[actor].send(None)
        except StopIteration as end:
            self.results[actor] = end.value

    @property
    def waiting(self) -> list[int]:
        return [actor for actor in range(len(self.starts)) if actor not in self.results]

    def key(self) -> object:
        return content(self.memory._ledger), tuple(tuple(view.seen) for view in self.views)

    def close(self) -> None:
        for each in self.running:
            each.close()


def explore(
    starts: Sequence[Callable[[Store], Coroutine[Any, Any, Any]]],
    check: Callable[[Ledger], None],
    finally_: Callable[[Ledger, dict[int, Any]], None],
) -> tuple[int, int]:
    """Run every interleaving; `check` sees the ledger after every step, `finally_` also what the actors returned.

    Returns how many different states there were, and how many ends.
    """
    seen: set[object] = set()
    ends = 0
    todo: list[tuple[int, ...]] = [()]
    while todo:
        path = todo.pop()
        world = World(starts)
        try:
            world.begin()
            for actor in path:
                world.step(actor)
            key = world.key()
            if key in seen:
                continue
            seen.add(key)
            check(world.memory._ledger)
            if not world.waiting:
                ends += 1
                finally_(world.memory._ledger, world.results)
            todo += [(*path, actor) for actor in world.waiting]
        finally:
            world.close()
    return len(seen), ends
