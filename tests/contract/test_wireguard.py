"""What every WireGuard backend does, said once: the fake, wireguard-go (ours and Debian's), the kernel.

The kernel's turn comes where the kernel has WireGuard; elsewhere tests/kernel runs this file inside a virtual machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from agent.errors import HostError
from agent.fakes.host import FakeHost
from agent.fakes.wireguard import FakeWireGuard
from agent.host import CreateDevice, RemoveAllowedIPs, RemovePeer, SetDevice, SetPeer, WireGuard, WireGuardStep
from agent.keys import generate_preshared_key, generate_private_key, public_key
from agent.model import DeviceState, Endpoint, IPNetwork, Peer, PresharedKey, PublicKey
from agent.wireguard.choose import find_program
from agent.wireguard.kernel import KernelWireGuard
from agent.wireguard.userspace import UserspaceWireGuard

PACKAGED = find_program("/usr/bin/wireguard-go")
#: Apart from the listen port: wireguard-go may choose one before the link is up.
EMPTY = DeviceState(private_key=None, listen_port=0, fwmark=0, peers=frozenset())

_names = (f"rzc{os.getpid():x}n{number}" for number in itertools.count())


@dataclass(frozen=True, slots=True)
class Link:
    mtu_bytes: int
    up: bool
    alias: str


class Rig:
    """A backend, a name for its device, and eyes and hands of another program on the same host."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ifname = next(_names)
        self.host = FakeHost()
        self.wg = self.another()

    def another(self) -> WireGuard:
        """A second backend on the same host, as a restarted daemon has it."""
        if self.kind == "fake":
            first = getattr(self, "wg", None)
            return first if isinstance(first, FakeWireGuard) else FakeWireGuard(self.host)
        if self.kind == "kernel":
            return KernelWireGuard()
        program = find_program() if self.kind == "userspace" else PACKAGED
        assert program is not None, "there is no wireguard-go: run scripts/install-wireguard-go"
        return UserspaceWireGuard(program)

    async def create(self, alias: str = "rhizome test 1", mtu_bytes: int = 1420) -> None:
        await self.wg.create(CreateDevice(self.ifname, mtu_bytes, alias))

    async def read(self) -> DeviceState:
        state = await self.wg.read(self.ifname)
        assert state is not None
        return state

    async def peers(self) -> dict[PublicKey, Peer]:
        return {peer.public_key: peer for peer in (await self.read()).peers}

    def link(self) -> Link | None:
        if self.kind == "fake":
            fake = self.host.links.get(self.ifname)
            return None if fake is None else Link(fake.mtu_bytes, fake.up, fake.alias)
        links = json.loads(subprocess.check_output(["ip", "-j", "link"]))
        found = next((link for link in links if link["ifname"] == self.ifname), None)
        return None if found is None else Link(found["mtu"], "UP" in found["flags"], found.get("ifalias", ""))

    def up(self) -> None:
        if self.kind == "fake":
            self.host.set_up(self.ifname, True)
        else:
            subprocess.run(["ip", "link", "set", self.ifname, "up"], check=True)

    def add_foreign(self, kind: str) -> None:
        if self.kind == "fake":
            self.host.add_link(self.ifname, kind)
        elif kind == "tun":
            subprocess.run(["ip", "tuntap", "add", "mode", "tun", "name", self.ifname], check=True)
        else:
            subprocess.run(["ip", "link", "add", self.ifname, "type", kind], check=True)


@pytest.fixture(
    params=[
        "fake",
        pytest.param("userspace", marks=pytest.mark.netns),
        pytest.param("userspace-packaged", marks=pytest.mark.netns),
        pytest.param("kernel", marks=[pytest.mark.netns, pytest.mark.kernel_wireguard]),
    ]
)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    kind = request.param
    if kind != "fake":
        request.getfixturevalue("netns")
    if kind == "userspace-packaged" and PACKAGED in (None, find_program()):
        pytest.skip("wireguard-go is not here twice, as a current release and as Debian's package")
    rig = Rig(kind)
    yield rig
    with contextlib.suppress(HostError):  # a link that was not ours
        await rig.wg.delete(rig.ifname)


def key() -> PublicKey:
    return public_key(generate_private_key())


def nets(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(IPv6Network(text) if ":" in text else IPv4Network(text) for text in texts)


# Devices.


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


# Peers.


async def test_a_peer_is_read_back_as_it_was_set(rig: Rig) -> None:
    await rig.create()
    psk = generate_preshared_key()
    v4, v6, bare = key(), key(), key()
    await rig.wg.apply(
        [
            SetPeer(rig.ifname, v4, nets("10.1.0.0/16", "fd00:1::/64"), _endpoint("192.0.2.1", 51820), psk, 25),
            SetPeer(rig.ifname, v6, nets("::/0", "0.0.0.0/0"), _endpoint("2001:db8::7", 1)),
            SetPeer(rig.ifname, bare, persistent_keepalive_s=65535),
        ]
    )
    state = await rig.read()
    assert state.peers == {
        Peer(v4, nets("10.1.0.0/16", "fd00:1::/64"), _endpoint("192.0.2.1", 51820), psk, 25),
        Peer(v6, nets("::/0", "0.0.0.0/0"), _endpoint("2001:db8::7", 1)),
        Peer(bare, persistent_keepalive_s=65535),
    }
    assert [status.public_key for status in state.statuses] == sorted([v4, v6, bare])
    status = next(status for status in state.statuses if status.public_key == v4)
    assert (status.endpoint, status.latest_handshake) == (_endpoint("192.0.2.1", 51820), None)
    assert (status.rx_bytes, status.tx_bytes) == (0, 0)


async def test_none_leaves_as_it_is_and_zero_clears(rig: Rig) -> None:
    await rig.create()
    peer = Peer(key(), nets("10.1.0.0/16"), _endpoint("192.0.2.1", 5), generate_preshared_key(), 25)
    await rig.wg.apply([SetPeer(rig.ifname, peer.public_key, peer.allowed_ips, peer.endpoint, peer.preshared_key, 25)])
    await rig.wg.apply([SetPeer(rig.ifname, peer.public_key)])
    assert (await rig.read()).peers == {peer}
    await rig.wg.apply([SetPeer(rig.ifname, peer.public_key, persistent_keepalive_s=0)])
    assert (await rig.read()).peers == {replace(peer, persistent_keepalive_s=0)}
    await rig.wg.apply([SetPeer(rig.ifname, peer.public_key, preshared_key=PresharedKey(bytes(32)))])
    assert (await rig.read()).peers == {replace(peer, persistent_keepalive_s=0, preshared_key=None)}


async def test_an_endpoint_may_be_link_local(rig: Rig) -> None:
    await rig.create()
    peer, endpoint = key(), _endpoint("fe80::5%lo", 51820)
    await rig.wg.apply([SetPeer(rig.ifname, peer, endpoint=endpoint)])
    read = (await rig.peers())[peer].endpoint
    assert read is not None
    if rig.kind == "userspace-packaged":  # keeps the zone and does not show it
        read = _endpoint(f"{read.address}%lo", read.port)
    assert read == endpoint


async def test_removing_a_peer_twice_is_no_error(rig: Rig) -> None:
    await rig.create()
    one, two = key(), key()
    await rig.wg.apply([SetPeer(rig.ifname, one, nets("10.1.0.0/16")), SetPeer(rig.ifname, two)])
    await rig.wg.apply([RemovePeer(rig.ifname, one)])
    await rig.wg.apply([RemovePeer(rig.ifname, one)])
    assert set(await rig.peers()) == {two}


async def test_a_device_is_never_its_own_peer(rig: Rig) -> None:
    await rig.create()
    private, other = generate_private_key(), key()
    own = public_key(private)
    await rig.wg.apply([SetPeer(rig.ifname, own, nets("10.1.0.0/16")), SetPeer(rig.ifname, other)])
    await rig.wg.apply([SetDevice(rig.ifname, private)])
    assert set(await rig.peers()) == {other}
    await rig.wg.apply([SetPeer(rig.ifname, own, nets("10.2.0.0/16"))])
    assert set(await rig.peers()) == {other}


async def test_steps_of_both_kinds_keep_their_order(rig: Rig) -> None:
    await rig.create()
    private, one, two = generate_private_key(), key(), key()
    await rig.wg.apply(
        [
            SetPeer(rig.ifname, one, nets("10.1.0.0/16")),
            SetDevice(rig.ifname, private, 51779),
            SetPeer(rig.ifname, two, nets("10.1.0.0/16")),
            RemovePeer(rig.ifname, one),
            SetDevice(rig.ifname, fwmark=3),
        ]
    )
    assert await rig.read() == DeviceState(
        private, 51779, 3, frozenset({Peer(two, nets("10.1.0.0/16"))}), (await rig.read()).statuses
    )


# Allowed-ips.


async def test_the_last_claimer_takes_an_allowed_ip(rig: Rig) -> None:
    await rig.create()
    one, two = key(), key()
    await rig.wg.apply([SetPeer(rig.ifname, one, nets("10.1.0.0/16", "10.2.0.0/16", "fd00:1::/64"))])
    await rig.wg.apply([SetPeer(rig.ifname, two, nets("10.2.0.0/16", "fd00:1::/64"))])
    assert {k: p.allowed_ips for k, p in (await rig.peers()).items()} == {
        one: nets("10.1.0.0/16"),
        two: nets("10.2.0.0/16", "fd00:1::/64"),
    }
    # In one batch too, and a smaller prefix is another one.
    await rig.wg.apply(
        [SetPeer(rig.ifname, two, nets("10.1.0.0/16")), SetPeer(rig.ifname, one, nets("10.1.0.0/16", "10.2.3.0/24"))]
    )
    assert {k: p.allowed_ips for k, p in (await rig.peers()).items()} == {
        one: nets("10.1.0.0/16", "10.2.3.0/24"),
        two: nets("10.2.0.0/16", "fd00:1::/64"),
    }


async def test_allowed_ips_are_removed_one_by_one_and_nothing_else_is(rig: Rig) -> None:
    await rig.create()
    endpoint, psk = _endpoint("192.0.2.1", 51820), generate_preshared_key()
    one, two = key(), key()
    await rig.wg.apply(
        [
            SetPeer(
                rig.ifname, one, nets("10.1.0.0/16", "10.2.0.0/16", "fd00:1::/64", "fd00:2::/64"), endpoint, psk, 9
            ),
            SetPeer(rig.ifname, two, nets("10.3.0.0/16")),
        ]
    )
    await rig.wg.apply(
        [
            RemoveAllowedIPs(rig.ifname, one, nets("10.2.0.0/16", "fd00:1::/64")),
            RemoveAllowedIPs(rig.ifname, two, frozenset()),
        ]
    )
    assert (await rig.read()).peers == {
        Peer(one, nets("10.1.0.0/16", "fd00:2::/64"), endpoint, psk, 9),
        Peer(two, nets("10.3.0.0/16")),
    }


async def test_a_thousand_peers_are_set_and_read_back_whole(rig: Rig) -> None:
    await rig.create()
    peers = frozenset(
        Peer(
            PublicKey(os.urandom(31) + b"\1"),
            frozenset({IPv4Network((0x0A000000 + number, 32)), IPv6Network(((0xFD00 << 112) + number, 128))}),
            _endpoint("192.0.2.1", 10_000 + number),
            generate_preshared_key(),
            25,
        )
        for number in range(1_000)
    )
    await rig.wg.apply(
        [SetPeer(rig.ifname, p.public_key, p.allowed_ips, p.endpoint, p.preshared_key, 25) for p in peers]
    )
    state = await rig.read()
    assert state.peers == peers
    assert len(state.statuses) == 1_000
    gone = sorted(p.public_key for p in peers)[::2]
    await rig.wg.apply([RemovePeer(rig.ifname, k) for k in gone])
    assert set(await rig.peers()) == {p.public_key for p in peers} - set(gone)


async def test_deleting_a_full_device_does_not_take_a_grace_period_for_each_peer(rig: Rig) -> None:
    """18 ms for each on a kernel with HZ=250: 5.4 s for these 300, unless the device is emptied first."""

    async def delete() -> float:
        began = time.monotonic()
        await rig.wg.delete(rig.ifname)
        return time.monotonic() - began

    await rig.create()
    empty_s = await delete()
    await rig.create()
    await rig.wg.apply([SetPeer(rig.ifname, PublicKey(os.urandom(31) + b"\1")) for _ in range(300)])
    assert await delete() < 3 * empty_s + 1
    assert rig.link() is None


async def test_a_read_while_others_write_is_whole(rig: Rig) -> None:
    """A dump takes several messages; what changes in between must not make it lack a peer or an allowed-ip."""
    await rig.create()
    fixed = {
        PublicKey(os.urandom(31) + b"\1"): nets(f"10.{number}.0.0/16", f"10.{number}.1.0/24", f"fd00:{number}::/32")
        for number in range(200)
    }
    await rig.wg.apply([SetPeer(rig.ifname, k, networks) for k, networks in fixed.items()])
    guest, stop = key(), threading.Event()

    async def write() -> None:
        writer = rig.another()
        while not stop.is_set():
            await writer.apply([SetPeer(rig.ifname, guest, nets("192.0.2.0/24"))])
            await writer.apply([RemovePeer(rig.ifname, guest)])
            await asyncio.sleep(0.01)

    writing = asyncio.create_task(asyncio.to_thread(asyncio.run, write()))
    try:
        for _ in range(20):
            peers = await rig.peers()
            peers.pop(guest, None)
            assert {k: peer.allowed_ips for k, peer in peers.items()} == fixed
    finally:
        stop.set()
        await writing


async def test_a_peer_with_ten_thousand_allowed_ips_is_set_read_and_thinned_whole(rig: Rig) -> None:
    await rig.create()
    small, big = key(), key()
    v4: list[IPNetwork] = [IPv4Network((0x0A000000 + (number << 8), 24)) for number in range(6_000)]
    v6: list[IPNetwork] = [IPv6Network(((0xFD00 << 112) + (number << 64), 64)) for number in range(4_000)]
    everything = frozenset(v4 + v6)
    await rig.wg.apply(
        [SetPeer(rig.ifname, small, nets("192.0.2.0/24")), SetPeer(rig.ifname, big, everything, None, None, 11)]
    )
    wanted = {Peer(small, nets("192.0.2.0/24")), Peer(big, everything, persistent_keepalive_s=11)}
    assert (await rig.read()).peers == wanted
    gone = frozenset(v4[::2] + v6[::2])
    await rig.wg.apply([RemoveAllowedIPs(rig.ifname, big, gone)])
    wanted = {Peer(small, nets("192.0.2.0/24")), Peer(big, everything - gone, persistent_keepalive_s=11)}
    assert (await rig.read()).peers == wanted


# Secrets.


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


def _endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(IPv6Address(address) if ":" in address else IPv4Address(address), port)
