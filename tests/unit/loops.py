"""What runs for as long as a test of it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.carrier.api import Event
from agent.run import cancel_all


@contextlib.asynccontextmanager
async def running(
    run: Callable[[AsyncIterator[Event], asyncio.Event], Awaitable[None]], said: asyncio.Queue[Event]
) -> AsyncIterator[None]:
    """A server or a client, whose carrier says what is put into the queue."""

    async def events() -> AsyncIterator[Event]:
        while True:
            yield await said.get()

    stop = asyncio.Event()
    task = asyncio.ensure_future(run(events(), stop))
    try:
        yield
    finally:
        stop.set()
        await task
        await cancel_all()
