"""Who waits for a part of the shoot that is out of reach hears of it; who waits for a slow target does not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agent.model import IPAddress
from seed_server.egress.lost import SILENT_S, WAITING_S, end_lost
from tests.unit.seed_server.egress.conftest import Scene


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def down(_: IPAddress) -> str:
    return "no client"


def well(_: IPAddress) -> str:
    return ""


async def test_a_connection_with_something_unsaid_ends_soon_and_a_silent_one_later(scene: Scene) -> None:
    pump = scene.proxy.pump
    port = await scene.target(hold)
    waiting, to_waiting = await scene.connect(port)
    silent, to_silent = await scene.connect(port)
    to_waiting.write(bytes(16 * 1024 * 1024))
    await asyncio.sleep(0.1)
    assert end_lost(pump, down, 100.0) == 0
    assert end_lost(pump, down, 100.0 + WAITING_S - 0.1) == 0
    assert end_lost(pump, down, 100.0 + WAITING_S) == 1
    async with asyncio.timeout(1):
        assert await reads_an_end(waiting)
    assert not silent.at_eof()
    assert end_lost(pump, down, 100.0 + SILENT_S - 0.1) == 0
    assert end_lost(pump, down, 100.0 + SILENT_S) == 1
    async with asyncio.timeout(1):
        assert await reads_an_end(silent)
    for writer in (to_waiting, to_silent):
        writer.transport.abort()


async def test_who_does_not_read_is_left_alone_and_an_outage_that_ends_is_forgotten(scene: Scene) -> None:
    pump = scene.proxy.pump
    _, writer = await scene.connect(await scene.target(hold))
    writer.write(bytes(16 * 1024 * 1024))
    await asyncio.sleep(0.1)
    for second in range(0, 1000, 100):
        assert end_lost(pump, well, float(second)) == 0, "a target that does not read is no outage"
    assert end_lost(pump, down, 1000.0) == 0
    assert end_lost(pump, well, 1000.0 + WAITING_S - 1) == 0
    assert end_lost(pump, down, 1000.0 + WAITING_S) == 0, "another outage, another wait"
    writer.transport.abort()


async def test_what_was_dialled_in_the_seed_does_not_depend_on_the_tunnel(scene: Scene) -> None:
    scene.egress.configure(replace(scene.config, direct=("127.0.0.0/8",)))
    pump = scene.proxy.pump
    _, writer = await scene.connect(await scene.target(hold))
    assert len(pump) == 1
    assert end_lost(pump, down, 100.0) == 0
    assert end_lost(pump, down, 100.0 + 10 * SILENT_S) == 0
    writer.transport.abort()


async def reads_an_end(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True
