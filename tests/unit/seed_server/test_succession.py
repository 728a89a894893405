"""The server's side of new WireGuard keys, over a fake host: it begins, asks, waits, ends, and an attacker gains nothing by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.carrier.api import Close, Configure, Down, ListenConfig, TlsFiles, Up
from agent.fakes.host import FakeHost
from agent.fakes.wireguard import FakeWireGuard
from agent.generations import target
from agent.host import CreateDevice, SetDevice, SetPeer
from agent.identity import Identity, Role
from agent.keys import generate_private_key
from agent.messages import Enroll, Facts, Grant, Refuse
from agent.model import PublicKey, networks
from seed_server import succession
from seed_server.succession import OVERLAP_S, Succession
from tests.unit.seed_server.rig import CP, NODE, PARTS, Rig, key, make_rig, running

CONFIG = ListenConfig((("::", 8443),), TlsFiles("ca"), 51820, CP)
FIRST, SECOND = "rz-seed", "rz-seed-b"


@dataclass
class Stage:
    """A server with a client n1 in it, and whoever replaces the keys. Time is what the test says."""

    rig: Rig
    keys: Succession
    order: Path
    now: float = 1000.0

    async def look(self, after_s: float = 1.0) -> None:
        self.now += after_s
        await self.keys.look(self.now, 1_700_000_000.0)

    async def begin(self) -> str:
        """By command; the name of the new device."""
        self.order.touch()
        await self.look()
        plane = self.rig.server.stream.successor
        assert plane is not None
        await self.look()
        return target(plane.incarnation.public_key)

    def connect(self, stream: int, port: int, name: str, *, standby: bool) -> None:
        uri = str(Identity(CP, Role.SHOOT_CLIENT, "n1"))
        self.rig.events.put_nowait(Up(stream, uri, "192.0.2.9:4000", "", 1, wireguard_port=port))
        self.rig.say(stream, Enroll((("stream", key(name)),), NODE, standby=standby))

    async def come(self, stream: int = 2, name: str = "new") -> None:
        self.connect(stream, 51822, name, standby=True)
        await self.rig.answers(stream)
        self.rig.say(stream, Facts(NODE))
        await self.rig.answers(stream, 2)
        await self.rig.server.engine.settled()

    def peers(self, ifname: str) -> set[PublicKey]:
        device = self.rig.wg.devices.get(ifname)
        return set(device.peers) if device is not None else set()

    def leads(self) -> str:
        """The device that the client's node is reached by: the longest prefix decides."""
        node = ip_address("10.250.0.2")
        found = [route for (dst, metric), route in self.rig.host.routes.items() if node in dst and not metric]
        return max(found, key=lambda route: route.dst.prefixlen).ifname

    def configured(self) -> ListenConfig:
        config = [c for c in self.rig.sent if isinstance(c, Configure)][-1].config
        assert isinstance(config, ListenConfig)
        return config


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(succession, "GRACE_S", 0.0)
    monkeypatch.setattr("seed_server.generations.obstacle", lambda: "")
    host = FakeHost()
    async with running(await make_rig(host, FakeWireGuard(host))) as rig:
        order = tmp_path / "order"
        stage = Stage(rig, Succession(rig.server, rig.sent.append, CONFIG, lifetime_s=0, order=order), order)
        await rig.joined(1, "n1", NODE)
        yield stage


async def test_nothing_begins_unasked(stage: Stage) -> None:
    await stage.look()
    assert stage.rig.server.stream.successor is None


async def test_a_key_that_is_old_enough_is_replaced(stage: Stage) -> None:
    born = stage.rig.server.stream.current.born
    keys = Succession(stage.rig.server, stage.rig.sent.append, CONFIG, lifetime_s=3600, order=stage.order)
    await keys.look(100.0, born + 3599)
    assert stage.rig.server.stream.successor is None
    await keys.look(100.0, born + 3600)
    assert stage.rig.server.stream.successor is not None


async def test_an_order_makes_a_second_device_and_asks_the_clients(stage: Stage) -> None:
    name = await stage.begin()
    assert not stage.order.exists()
    first, second = (stage.rig.wg.devices[ifname].private_key for ifname in (FIRST, SECOND))
    assert first != second
    grant = (await stage.rig.answers(1, 2))[-1]
    assert isinstance(grant, Grant) and grant.successor == name and grant.target not in ("", name)
    assert (name, 51822) in stage.configured().targets and stage.configured().wireguard_port == 51820


async def test_so_many_clients_are_asked_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "AT_ONCE", 1)
    await stage.rig.joined(9, "n2")
    await stage.begin()
    assert sum(client.asked for client in stage.rig.server.registry.clients.values()) == 1
    await stage.look()
    assert all(client.asked for client in stage.rig.server.registry.clients.values())


async def test_a_client_on_standby_has_a_peer_and_no_packets(stage: Stage) -> None:
    await stage.begin()
    stage.connect(2, 51822, "new", standby=True)
    await stage.rig.answers(2)
    assert stage.peers(FIRST) == {key("n1")} and stage.peers(SECOND) == {key("new")}
    assert stage.leads() == FIRST


async def test_packets_follow_the_client_and_the_old_peer_stays(stage: Stage) -> None:
    await stage.begin()
    await stage.come()
    assert stage.leads() == SECOND
    assert stage.peers(FIRST) == {key("n1")} and stage.peers(SECOND) == {key("new")}
    await stage.look()
    assert stage.rig.server.stream.successor is not None, "the client has its old device yet"


async def test_when_the_last_client_has_left_the_old_device_goes(stage: Stage) -> None:
    await stage.begin()
    await stage.come()
    stage.rig.events.put_nowait(Down(1, "eof", ""))
    await stage.rig.server.engine.settled()
    await asyncio.sleep(0)
    stage.now += 1e9  # the stream was lost at a real time
    await stage.look()
    assert FIRST not in stage.rig.wg.devices and stage.peers(SECOND) == {key("new")}
    assert {route.ifname for route in stage.rig.host.routes.values()} == {SECOND}
    assert stage.configured().ports() == {51822}
    assert stage.keys.rotations == {"done": 1}


async def test_a_rotation_that_cannot_begin_is_counted_and_the_key_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "LOOK_S", 0.0)
    monkeypatch.setattr("seed_server.generations.obstacle", lambda: "reverse path filtering is strict")
    before = stage.rig.wg.devices[FIRST].private_key
    stage.order.touch()
    task = asyncio.create_task(stage.keys.run())
    while not stage.keys.rotations:
        await asyncio.sleep(0)
    task.cancel()
    assert stage.keys.rotations == {"failed": 1}
    assert set(stage.rig.wg.devices) == {FIRST} and stage.rig.wg.devices[FIRST].private_key == before


async def test_the_next_rotation_takes_the_first_name_again(stage: Stage) -> None:
    await stage.begin()
    await stage.look(OVERLAP_S)
    assert set(stage.rig.wg.devices) == {SECOND}
    await stage.begin()
    assert set(stage.rig.wg.devices) == {FIRST, SECOND}
    assert stage.rig.server.stream.current.ifname == SECOND


async def test_who_does_not_come_in_time_is_expected_at_the_new_device(stage: Stage) -> None:
    """An old version that does not know how: its stream ends with the old device, and its next one leads here."""
    await stage.begin()
    await stage.look(OVERLAP_S - 2)
    assert FIRST in stage.rig.wg.devices
    await stage.look(2)
    assert FIRST not in stage.rig.wg.devices and stage.peers(SECOND) == {key("n1")}
    assert stage.keys.rotations == {"forced": 1}
    stage.connect(3, 51822, "n1", standby=False)
    (grant,) = await stage.rig.answers(3)
    assert isinstance(grant, Grant) and grant.successor == "" and grant.target == ""
    assert dict(grant.public_keys)["stream"] == stage.rig.server.stream.current.incarnation.public_key


async def test_who_keeps_both_for_ever_has_one_peer_at_each_and_then_one(stage: Stage) -> None:
    """The attack. More keys take the place of each other, prefixes stay its own, and the end comes without its consent."""
    await stage.begin()
    for number in range(5):
        stage.connect(10 + number, 51822, f"new{number}", standby=True)
        await stage.rig.answers(10 + number)
    assert stage.peers(SECOND) == {key("new4")} and stage.peers(FIRST) == {key("n1")}
    devices = stage.rig.wg.devices
    allowed = [peer.allowed_ips for ifname in (FIRST, SECOND) for peer in devices[ifname].peers.values()]
    assert allowed[0] == allowed[1]
    await stage.look(OVERLAP_S)
    assert set(devices) == {SECOND} and stage.peers(SECOND) == {key("new4")}


async def test_who_asks_for_a_second_device_unasked_gets_none(stage: Stage) -> None:
    stage.connect(2, 51822, "new", standby=True)
    (answer,) = await stage.rig.answers(2)
    assert isinstance(answer, Refuse) and answer.reason == "standby"
    assert set(stage.rig.wg.devices) == {FIRST} and stage.peers(FIRST) == {key("n1")}


async def test_a_second_device_that_cannot_be_had_is_said_and_changes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seed_server.generations.obstacle", lambda: "rp_filter is 1 here")
    stage.order.touch()
    with pytest.raises(Exception, match="rp_filter is 1 here"):
        await stage.look()
    assert set(stage.rig.wg.devices) == {FIRST} and stage.rig.server.stream.successor is None
    assert not [c for c in stage.rig.sent if isinstance(c, Close)]


async def in_the_middle() -> tuple[FakeHost, FakeWireGuard]:
    """What a server that is restarted finds: a peer of the client at each device, with the same prefixes."""
    host = FakeHost()
    wg = FakeWireGuard(host)
    allowed = frozenset(networks(["192.168.128.2/32", "10.250.0.2/32", *PARTS]))
    for ifname, epoch, name in ((FIRST, "6b01c31d00000000", "n1"), (SECOND, "6b01c32000000000", "new")):
        await wg.create(CreateDevice(ifname, 1420, f"rhizome seed-server {epoch}"))
        await wg.apply([SetDevice(ifname, generate_private_key(), 51820), SetPeer(ifname, key(name), allowed)])
    return host, wg


async def test_a_server_that_finds_the_hour_over_ends_it_before_anybody_has_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "GRACE_S", 0.0)
    host, wg = await in_the_middle()
    async with running(await make_rig(host, wg)) as rig:
        stage = Stage(
            rig, Succession(rig.server, rig.sent.append, CONFIG, lifetime_s=0, order=tmp_path / "order"), tmp_path
        )
        await stage.look()
        await stage.look(OVERLAP_S)
        assert set(wg.devices) == {SECOND} and stage.peers(SECOND) == {key("n1")}, "its packets went by the old one"
        assert stage.keys.rotations == {"forced": 1}


async def test_a_client_that_comes_back_with_one_of_its_keys_has_all_that_it_had() -> None:
    host, wg = await in_the_middle()
    async with running(await make_rig(host, wg)) as rig:
        assert rig.server.stream.successor is not None
        grant = await rig.joined(1, "n1", NODE)
        assert grant.successor, "it was coming over when the server ended"
        await rig.server.engine.settled()
        assert {str(n) for n in wg.devices[FIRST].peers[key("n1")].allowed_ips} > PARTS
