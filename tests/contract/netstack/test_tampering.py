"""What every NetStack sees of what others do: to the firewall that was applied, and to all the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agent.host import (
    AddRoute,
    AddRule,
    NetStack,
    SetFirewall,
    SetSysctl,
)
from agent.model import Route
from tests.contract.netstack.conftest import (
    ADDRESS4,
    FORWARD,
    RANGE4,
    RANGE6,
    World,
    device,
    firewall,
)


async def test_the_firewall_is_recognised_while_it_is_what_was_applied(world: World, net: NetStack) -> None:
    text, other = firewall("10.0.0.0/8"), firewall("10.0.0.0/9")
    await net.apply([SetFirewall(text)])
    assert (await net.read(None)).firewall == text
    assert (await net.read(None, firewall=other)).firewall == text
    await net.apply([SetFirewall(other), SetFirewall(other)])
    assert (await net.read(None)).firewall == other
    await net.apply([SetFirewall(None), SetFirewall(None)])
    assert (await net.read(None)).firewall is None


async def test_a_new_process_recognises_the_firewall_by_the_text_that_it_wants(world: World, net: NetStack) -> None:
    text = firewall("10.0.0.0/8")
    await net.apply([SetFirewall(text)])
    successor = await world.start()
    assert (await successor.read(None)).firewall == ""
    assert (await successor.read(None, firewall=firewall("10.0.0.0/9"))).firewall == ""
    assert (await successor.read(None, firewall=text)).firewall == text
    await successor.apply([SetFirewall(text)])
    assert (await successor.read(None)).firewall == text
    world.edit_firewall()
    assert (await (await world.start()).read(None, firewall=text)).firewall == ""


async def test_an_edited_or_flushed_firewall_is_seen_and_mended(world: World, net: NetStack) -> None:
    text = firewall("10.0.0.0/8")
    await net.apply([SetFirewall(text)])
    world.edit_firewall()
    assert (await net.read(None, firewall=text)).firewall == ""
    await net.apply([SetFirewall(text)])
    assert (await net.read(None)).firewall == text
    world.flush_firewall()
    assert (await net.read(None, firewall=text)).firewall is None
    await net.apply([SetFirewall(text)])
    assert (await net.read(None)).firewall == text


TAMPERINGS: dict[str, Callable[[World], None]] = {
    "route deleted": lambda world: world.delete_route(Route(RANGE4, "wg0")),
    "IPv6 route deleted": lambda world: world.delete_route(Route(RANGE6, "wg0")),
    "rule deleted": lambda world: world.delete_rule(4),
    "IPv6 rule deleted": lambda world: world.delete_rule(6),
    "address deleted": lambda world: world.delete_address("wg0", ADDRESS4),
    "link down": lambda world: world.down("wg0"),
    "link deleted": lambda world: world.delete_link("wg0"),
    "wanted link added": lambda world: world.add_link("wg1", alias=""),
    "sysctl changed": lambda world: world.set_sysctl(FORWARD, "0"),
    "firewall edited": lambda world: world.edit_firewall(),
    "firewall flushed": lambda world: world.flush_firewall(),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_changes_by_others_give_a_hint(world: World, net: NetStack, tampering: str) -> None:
    await device(world, net)
    await net.apply([SetFirewall(firewall("10.0.0.0/8")), AddRule(4), AddRule(6), SetSysctl(FORWARD, "1")])
    await net.apply([AddRoute(Route(RANGE4, "wg0")), AddRoute(Route(RANGE6, "wg0"))])
    await net.read(["wg0", "wg1"])
    async with listening(net) as hinted:
        TAMPERINGS[tampering](world)
        await asyncio.wait_for(hinted.wait(), 2.0)


@asynccontextmanager
async def listening(net: NetStack) -> AsyncIterator[asyncio.Event]:
    """An event that the next hint sets; those that came of what was done before are over."""
    hinted = asyncio.Event()

    async def listen() -> None:
        async for _ in net.changes():
            hinted.set()

    task = asyncio.ensure_future(listen())
    try:
        await asyncio.sleep(0.02)
        while True:
            hinted.clear()
            try:
                await asyncio.wait_for(hinted.wait(), 0.3)
            except TimeoutError:
                break
        yield hinted
    finally:
        task.cancel()
        await asyncio.wait([task])
