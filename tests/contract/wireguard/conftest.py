"""Every WireGuard backend: the fake, wireguard-go (ours and Debian's), the kernel; and eyes and hands of another program.

The kernel's turn comes where the kernel has WireGuard; elsewhere tests/kernel runs these files inside a virtual machine.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

import pytest

from agent.errors import HostError
from agent.fakes.host import FakeHost
from agent.fakes.wireguard import FakeWireGuard
from agent.host import CreateDevice, WireGuard
from agent.keys import generate_private_key, public_key
from agent.model import DeviceState, IPNetwork, Peer, PublicKey
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
