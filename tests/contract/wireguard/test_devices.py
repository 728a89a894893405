"""What every WireGuard backend does with devices, said once; and that no key is told."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import replace

import pytest

from agent.errors import HostError
from agent.host import SetDevice, SetPeer, WireGuardStep
from agent.keys import generate_preshared_key, generate_private_key
from agent.model import DeviceState, Peer
from tests.contract.wireguard.conftest import EMPTY, Link, Rig, key, nets


async def test_there_is_nothing_before_create(rig: Rig) -> None:
    assert await rig.wg.read(rig.ifname) is None
    with pytest.raises(HostError) as caught:
        await rig.wg.apply([SetDevice(rig.ifname, fwmark=1)])
    assert caught.value.errno == errno.ENODEV
    await rig.wg.delete(rig.ifname)
    await rig.wg.apply([])


async def test_a_created_device_is_tagged_down_and_empty(rig: Rig) -> None:
    await rig.create("rhizome seed 0badcafe", mtu_bytes=1333)
    assert rig.link() == Link(mtu_bytes=1333, up=False, alias="rhizome seed 0badcafe")
    assert replace(await rig.read(), listen_port=0) == EMPTY


async def test_creating_what_exists_is_refused_and_changes_nothing(rig: Rig) -> None:
    await rig.create("rhizome first")
    await rig.wg.apply([SetDevice(rig.ifname, fwmark=7)])
    with pytest.raises(HostError) as caught:
        await rig.create("rhizome second")
    assert caught.value.errno == errno.EEXIST
    assert rig.link() == Link(1420, False, "rhizome first")
    assert (await rig.read()).fwmark == 7


@pytest.mark.parametrize("kind", ["bridge", "tun"])
async def test_a_foreign_link_is_not_ours_to_read_or_delete(rig: Rig, kind: str) -> None:
    rig.add_foreign(kind)
    assert await rig.wg.read(rig.ifname) is None
    with pytest.raises(HostError):
        await rig.wg.delete(rig.ifname)
    assert rig.link() is not None
    with pytest.raises(HostError) as caught:
        await rig.create()
    assert caught.value.errno == errno.EEXIST


async def test_deleting_takes_the_link_and_a_new_device_is_empty(rig: Rig) -> None:
    await rig.create()
    await rig.wg.apply([SetDevice(rig.ifname, generate_private_key(), 0, 9), SetPeer(rig.ifname, key())])
    await rig.wg.delete(rig.ifname)
    assert rig.link() is None
    assert await rig.wg.read(rig.ifname) is None
    await rig.wg.delete(rig.ifname)
    await rig.create()
    assert replace(await rig.read(), listen_port=0) == EMPTY


async def test_key_port_and_mark_are_kept_each_on_its_own(rig: Rig) -> None:
    await rig.create()
    private = generate_private_key()
    await rig.wg.apply([SetDevice(rig.ifname, private_key=private)])
    await rig.wg.apply([SetDevice(rig.ifname, listen_port=51777), SetDevice(rig.ifname, fwmark=0x52)])
    assert await rig.read() == DeviceState(private, 51777, 0x52, frozenset())
    await rig.wg.apply([SetDevice(rig.ifname, fwmark=0)])
    rig.up()
    assert await rig.read() == DeviceState(private, 51777, 0, frozenset())


async def test_without_a_port_one_is_chosen_when_the_link_comes_up(rig: Rig) -> None:
    await rig.create()
    await rig.wg.apply([SetDevice(rig.ifname, generate_private_key())])
    rig.up()
    for _ in range(100):
        if (await rig.read()).listen_port:
            return
        await asyncio.sleep(0.02)
    pytest.fail("no listen port")


async def test_a_port_in_use_is_refused_with_its_errno_and_another_works(rig: Rig) -> None:
    if rig.kind == "fake":
        return  # it has no sockets
    await rig.create()
    await rig.wg.apply([SetDevice(rig.ifname, generate_private_key(), 51801)])
    rig.up()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 51802))
        await asyncio.sleep(0.1)  # wireguard-go hears of the link in its own time
        with pytest.raises(HostError) as caught:
            await rig.wg.apply([SetDevice(rig.ifname, listen_port=51802)])
    assert caught.value.errno == errno.EADDRINUSE
    await rig.wg.apply([SetDevice(rig.ifname, listen_port=51801)])
    assert (await rig.read()).listen_port == 51801


async def test_another_backend_object_adopts_the_device(rig: Rig) -> None:
    await rig.create()
    private, peer = generate_private_key(), key()
    await rig.wg.apply([SetDevice(rig.ifname, private, 51778), SetPeer(rig.ifname, peer, nets("10.1.0.0/16"))])
    before = await rig.read()
    after = rig.another()
    assert await after.read(rig.ifname) == before
    await after.apply([SetPeer(rig.ifname, peer, nets("10.2.0.0/16"))])
    state = await after.read(rig.ifname)
    assert state is not None
    assert state.private_key == private
    assert state.peers == {Peer(peer, nets("10.1.0.0/16", "10.2.0.0/16"))}
    await after.delete(rig.ifname)
    assert await rig.wg.read(rig.ifname) is None


async def test_keys_are_in_no_log_error_or_representation(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    private, psk = generate_private_key(), generate_preshared_key()
    peer = key()
    said = []
    with pytest.raises(HostError) as missing:
        await rig.wg.apply([SetDevice(rig.ifname, private), SetPeer(rig.ifname, peer, preshared_key=psk)])
    said += [str(missing.value), repr(missing.value), repr(missing.value.__cause__)]
    await rig.create()
    steps: list[WireGuardStep] = [
        SetDevice(rig.ifname, private),
        SetPeer(rig.ifname, peer, preshared_key=psk, persistent_keepalive_s=5),
    ]
    await rig.wg.apply(steps)
    said += [repr(await rig.read()), str(steps), *map(str, steps)]
    await rig.wg.delete(rig.ifname)
    text = "\n".join([caplog.text, *said, *(str(vars(record)) for record in caplog.records)])
    for secret in (private, psk):
        assert secret.reveal() not in text
        assert secret.raw.hex() not in text
        assert repr(secret.raw) not in text
