"""Two names in turn, and which of two devices is the newer one."""

import pytest

from agent.dataplane import DataPlane, open_both
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.generations import Names, target
from agent.host import CreateDevice, SetDevice
from agent.keys import generate_private_key
from agent.model import PublicKey

NAMES = Names("rz0", 51820)


def test_each_device_has_the_other_one() -> None:
    assert NAMES.both == ("rz0", "rz0-b")
    assert [NAMES.other(name) for name in NAMES.both] == ["rz0-b", "rz0"]
    assert [NAMES.port_of(name) for name in NAMES.both] == [51820, 51822]


def test_a_long_name_and_a_high_port_have_another_one_too() -> None:
    names = Names("wireguard012345", 65535)
    assert len(names.second) == 15 and names.second != names.ifname
    assert names.port_of(names.second) == 65533


def test_a_target_is_named_by_its_public_key() -> None:
    assert target(PublicKey(bytes(range(32)))) == "wg-00010203"


async def made(wg: FakeWireGuard, ifname: str, epoch: str) -> None:
    await wg.create(CreateDevice(ifname, 1420, f"rhizome seed-server {epoch}"))
    await wg.apply([SetDevice(ifname, generate_private_key(), 51820)])


async def found(*devices: tuple[str, str]) -> list[str]:
    host = FakeHost()
    wg, net = FakeWireGuard(host), FakeNetStack(host)
    for ifname, epoch in devices:
        await made(wg, ifname, epoch)
    first = await DataPlane.open(wg, net, "rz0", "seed-server")
    return [plane.ifname for plane in await open_both(first, NAMES) if plane is not None]


@pytest.mark.parametrize(
    ("devices", "order"),
    [
        ((), ["rz0"]),
        ((("rz0", "6b01c31d00000000"),), ["rz0"]),
        ((("rz0-b", "6b01c31d00000000"),), ["rz0-b"]),
        ((("rz0", "6b01c31d00000000"), ("rz0-b", "6b01c32000000000")), ["rz0", "rz0-b"]),
        ((("rz0", "6b01c32000000000"), ("rz0-b", "6b01c31d00000000")), ["rz0-b", "rz0"]),
    ],
)
async def test_the_older_of_those_that_are_there_comes_first(
    devices: tuple[tuple[str, str], ...], order: list[str]
) -> None:
    assert await found(*devices) == order


async def test_a_device_that_does_not_say_its_age_is_as_old_as_we_have_known_it() -> None:
    host = FakeHost()
    wg, net = FakeWireGuard(host), FakeNetStack(host)
    await made(wg, "rz0", "0badcafe")
    new = await DataPlane.open(wg, net, "rz1", "seed-server")
    old = await DataPlane.open(wg, net, "rz0", "seed-server")
    assert abs(old.born - new.born) < 5
