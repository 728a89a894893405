"""A client takes new keys, over the fake host: what it makes, when it moves, what it says, and what is left."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from agent.carrier.api import Command, Configure, DialConfig, Event, Message, Ready, Send, TlsFiles, Up
from agent.carrier.client import CarrierClient
from agent.client import kit as kits
from agent.client import succession
from agent.client.client import Client
from agent.client.kit import Kit
from agent.dataplane import DataPlane
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.generations import Names
from agent.messages import Enroll, Facts, Grant, encode, parse
from agent.model import PublicKey
from shoot_client.desired import Node, ShootRole
from tests.unit.shoot_client.test_client import CP, GRANT, OFFER, SERVER, Rig, running

FIRST, SECOND = "rz-shoot", "rz-shoot-b"
OLD, NEW = "wg-0a0a0a0a", "wg-0b0b0b0b"
ASKED = replace(GRANT, target=OLD, successor=NEW)
THERE = replace(GRANT, epoch="e2", target=NEW, public_keys=(("stream", PublicKey(b"t" * 32)),))
CONFIG = DialConfig("h", 443, "h", TlsFiles("ca"), 51877)


@dataclass
class Line:
    """A carrier that was dialled."""

    config: DialConfig
    sent: list[Command] = field(default_factory=list)
    said: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    detached: bool = False

    def send(self, command: Command) -> None:
        self.sent.append(command)

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self.said.get()

    async def detach(self) -> None:
        self.detached = True

    def connect(self, grant: Grant) -> None:
        for event in (Ready(4600, 2), Up(7, SERVER, "192.0.2.1:8443", "SNI", 1), Message(7, encode(grant))):
            self.said.put_nowait(event)

    def messages(self) -> list[object]:
        return [parse(c.text) for c in self.sent if isinstance(c, Send)]


class FakeKit(Kit):
    """Without processes."""

    lines: list[Line]

    async def dial(self, config: DialConfig) -> CarrierClient:
        self.lines.append(line := Line(config))
        return cast(CarrierClient, line)

    async def remove(self, ifname: str) -> None:
        if await self.first.wg.read(ifname) is not None:
            await self.first.wg.delete(ifname)


@dataclass
class Stage:
    rig: Rig
    lines: list[Line]

    async def come_over(self) -> Line:
        """The second device stands, with a peer."""
        self.rig.connect(ASKED)
        await self.until(lambda: bool(self.lines))
        self.lines[0].connect(THERE)
        await self.until(lambda: SECOND in self.rig.wg.devices and bool(self.rig.wg.devices[SECOND].peers))
        return self.lines[0]

    def crosses(self) -> None:
        """A canary, on each leg."""
        for leg in self.rig.client.legs:
            leg.responder.confirmed_at = time.monotonic()

    async def until(self, seen: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not seen():
                await asyncio.sleep(0.01)

    def configured(self) -> list[DialConfig]:
        """What the first device's carrier was told to dial, in order."""
        return [c.config for c in self.rig.sent if isinstance(c, Configure) and isinstance(c.config, DialConfig)]

    def way(self) -> str:
        return self.rig.host.routes[GRANT.tunnel_networks[0], 0].ifname


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr("agent.client.crossing.TICK_S", 0.02)
    monkeypatch.setattr(kits, "obstacle", lambda: "")
    monkeypatch.setattr(succession, "GRACE_S", 0.2)
    host = FakeHost()
    wg = FakeWireGuard(host)
    plane = await DataPlane.open(wg, FakeNetStack(host), FIRST, "shoot-client")
    rig, lines = Rig(host, wg), list[Line]()
    FakeKit.lines = lines
    rig.client = Client(
        ShootRole(Node(True)),
        plane,
        OFFER,
        rig.sent.append,
        lambda _: (),
        control_plane=CP,
        wireguard_port=51877,
        mtu_bytes=1420,
        resync_s=60.0,
        software="test",
        kit=FakeKit(plane, Names(FIRST, 51877), tmp_path, CONFIG),
        config=CONFIG,
    )
    async with running(rig):
        yield Stage(rig, lines)


async def test_it_enrols_the_second_key_on_standby_and_asks_for_the_new_device(stage: Stage) -> None:
    line = await stage.come_over()
    (enroll,) = line.messages()
    assert isinstance(enroll, Enroll) and enroll.standby
    assert line.config.target == NEW and line.config.wireguard_port == 51879
    old, new = (stage.rig.wg.devices[ifname].private_key for ifname in (FIRST, SECOND))
    assert old != new and stage.way() == FIRST


async def test_packets_go_by_the_new_device_and_both_streams_say_so(stage: Stage) -> None:
    line = await stage.come_over()
    stage.crosses()
    await stage.until(lambda: any(isinstance(m, Facts) for m in line.messages()))
    assert stage.way() == SECOND and FIRST in stage.rig.wg.devices
    assert [m.standby for m in line.messages() if isinstance(m, Facts)] == [False]
    assert [m.standby for m in stage.rig.said() if isinstance(m, Facts)] == [True]


async def test_the_old_device_goes_when_the_server_has_answered_and_not_before(stage: Stage) -> None:
    line = await stage.come_over()
    stage.crosses()
    await stage.until(lambda: stage.way() == SECOND)
    await asyncio.sleep(0.4)
    assert FIRST in stage.rig.wg.devices, "the server has not said that it sends by the new one"
    line.said.put_nowait(Message(7, encode(THERE)))
    stage.crosses()
    await stage.until(lambda: FIRST not in stage.rig.wg.devices)
    assert {route.ifname for route in stage.rig.host.routes.values()} == {SECOND}
    assert stage.rig.client.crossing is not None and stage.rig.client.crossing.rotations == {"done": 1}
    assert stage.rig.client.crossing.words == ""


async def test_a_server_that_wants_it_no_more_makes_it_turn_back(stage: Stage) -> None:
    line = await stage.come_over()
    stage.rig.hear(Message(1, encode(GRANT)))
    await stage.until(lambda: SECOND not in stage.rig.wg.devices)
    assert line.detached and stage.way() == FIRST
    assert stage.rig.client.crossing is not None and not stage.rig.client.crossing.rotations


async def test_new_keys_that_do_not_work_go_and_the_old_ones_stay(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "PATIENCE_S", 0.3)
    line = await stage.come_over()
    await stage.until(lambda: SECOND not in stage.rig.wg.devices)
    assert line.detached and stage.way() == FIRST
    crossing = stage.rig.client.crossing
    assert crossing is not None and crossing.rotations == {"failed": 1} and "old ones stay" in crossing.words
    await asyncio.sleep(0.1)
    assert len(stage.lines) == 1, "it is not tried again at once"


async def test_a_host_that_cannot_have_two_devices_says_so_and_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kits, "obstacle", lambda: "rp_filter is 1 here")
    stage.rig.connect(ASKED)
    await stage.until(lambda: "rp_filter is 1 here" in caplog.text)
    assert set(stage.rig.wg.devices) <= {FIRST} and not stage.lines
    assert stage.rig.client.crossing is not None and stage.rig.client.crossing.rotations == {"failed": 1}


async def test_the_first_stream_asks_for_its_device_by_name_while_there_are_two(stage: Stage) -> None:
    """A stream that is made anew must not lead to the other one."""
    await stage.come_over()
    assert [config.target for config in stage.configured()] == [OLD]
    stage.rig.hear(Message(1, encode(GRANT)))
    await stage.until(lambda: stage.configured()[-1].target == "wg")
