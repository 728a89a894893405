"""Adoption and epochs over the fake host."""

from dataclasses import replace

import pytest

from agent.dataplane import DataPlane, Incarnation
from agent.engine import Pass
from agent.errors import ConfigError
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.model import Peer, PublicKey, Tunnel, networks

PEER = Peer(PublicKey(b"p" * 32), frozenset(networks(["10.1.0.0/16"])))


class Rig:
    def __init__(self) -> None:
        self.host = FakeHost()
        self.wg = FakeWireGuard(self.host)
        self.net = FakeNetStack(self.host)

    async def open(self, role: str = "seed-server") -> DataPlane:
        return await DataPlane.open(self.wg, self.net, "rz0", role)


def want(plane: DataPlane) -> Tunnel:
    device = plane.device(listen_port=51820, mtu_bytes=1420)
    return Tunnel((replace(device, peers=frozenset({PEER})),), firewall="table")


async def one_pass(plane: DataPlane) -> Pass:
    done: list[Pass] = []
    await plane.engine(lambda: want(plane), done.append, 30.0).once()
    assert done[0].error is None
    return done[0]


async def test_a_key_is_born_once_and_adopted_by_the_next_process() -> None:
    rig = Rig()
    first = await rig.open()
    assert first.adopted is None
    assert not first.is_new_incarnation(await one_pass(first)), (
        "the first device of a process is the one its epoch names"
    )
    second = await rig.open()
    assert second.incarnation == first.incarnation
    assert second.adopted is not None and second.adopted.peers == {PEER}
    assert (await one_pass(second)).steps == (), "adoption changes nothing on the host"


async def test_a_device_made_anew_has_a_new_epoch_and_the_old_key() -> None:
    rig = Rig()
    plane = await rig.open()
    plane.is_new_incarnation(await one_pass(plane))
    before = plane.incarnation
    rig.wg.kill("rz0")
    assert plane.is_new_incarnation(await one_pass(plane))
    assert plane.incarnation.public_key == before.public_key and plane.incarnation.epoch != before.epoch
    await one_pass(plane)
    assert rig.host.links["rz0"].alias.endswith(plane.incarnation.epoch)


async def test_an_adopted_device_that_vanishes_is_a_new_incarnation_too() -> None:
    rig = Rig()
    await one_pass(await rig.open())
    plane = await rig.open()
    rig.wg.kill("rz0")
    assert plane.is_new_incarnation(await one_pass(plane))


async def test_another_roles_device_is_not_adopted() -> None:
    rig = Rig()
    await one_pass(await rig.open("seed-server"))
    with pytest.raises(ConfigError, match="another role"):
        await rig.open("shoot-client")


def test_keys_do_not_show() -> None:
    incarnation = Incarnation.new()
    assert incarnation.private_key.reveal() not in repr(incarnation)
    assert repr(incarnation.private_key.raw) not in repr(incarnation)
