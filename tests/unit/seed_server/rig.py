"""A seed server over the fake host, and what its carrier would tell it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from agent import messages
from agent.carrier.api import Command, Event, Message, Send, Up
from agent.dataplane import DataPlane
from agent.errors import StoreError
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.firewall import Firewall
from agent.generations import Names
from agent.identity import Identity, Role
from agent.messages import Drain, Enroll, Facts, Grant, Offer, encode, parse
from agent.model import IPAddress, PublicKey, networks
from seed_server.assignment import parts
from seed_server.charter import Charter
from seed_server.generations import Generations
from seed_server.policy import Policy
from seed_server.server import SeedServer
from seed_server.warden import Warden
from tests.unit import loops

CP = "shoot--garden--a"
CHARTER = Charter(
    policy=Policy(
        CP,
        networks(["10.250.0.0/16"]),
        networks(["100.96.0.0/11"]),
        networks(["100.64.0.0/13"]),
        ((ip_network("10.1.0.0/16"), "the seed's own range"),),
        lifetime_s=3600.0,
    ),
    addresses=(ip_address("192.168.128.1"),),
    tunnel_networks=networks(["192.168.128.0/17"]),
    ranges=networks(["10.250.0.0/16", "100.96.0.0/11", "100.64.0.0/13"]),
    mtu_bytes=1420,
    persistent_keepalive_s=25,
    firewall=Firewall(frozenset({"rz-seed"}), frozenset(networks(["192.168.128.0/17"])), hubs=frozenset({"rz-seed"})),
)
PARTS = set(map(str, parts(ip_network("100.64.0.0/13"))))
NODE = Offer(networks(["10.250.0.2/32"]), networks(["100.96.1.0/24"]), networks(["100.64.0.0/13"]))


def key(name: str) -> PublicKey:
    return PublicKey(name.encode().ljust(32, b"."))


@dataclass
class Rig:
    host: FakeHost
    wg: FakeWireGuard
    server: SeedServer = field(init=False)
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    sent: list[Command] = field(default_factory=list)
    failure: StoreError | None = None
    wall: float = 1_700_000_000.0
    addresses: dict[str, IPAddress] = field(default_factory=dict)

    async def allocate(self, identity: Identity) -> tuple[IPAddress, ...]:
        if self.failure:
            raise self.failure
        number = len(self.addresses) + 2
        return (self.addresses.setdefault(str(identity), ip_address(f"192.168.128.{number}")),)

    def up(
        self,
        stream: int,
        name: str,
        replay: tuple[str, ...] = (),
        identity: str | None = None,
        lasts_s: float | None = None,
    ) -> None:
        uri = identity or str(Identity(CP, Role.SHOOT_CLIENT, name))
        ends_at = None if lasts_s is None else self.wall + lasts_s
        self.events.put_nowait(Up(stream, uri, "192.0.2.9:4000", "", 1, replay, ends_at))

    def say(self, stream: int, message: Enroll | Facts | Drain) -> None:
        self.events.put_nowait(Message(stream, encode(message)))

    async def answers(self, stream: int, count: int = 1) -> list[messages.Message]:
        """The last `count` messages to a stream, as soon as there are that many."""
        async with asyncio.timeout(3):
            while True:
                said = [parse(c.text) for c in self.sent if isinstance(c, Send) and c.stream == stream]
                if len(said) >= count:
                    return said[-count:]
                await asyncio.sleep(0.005)

    async def joined(self, stream: int, name: str, offer: Offer | None = None) -> Grant:
        self.up(stream, name)
        self.say(stream, Enroll((("stream", key(name)),), offer or Offer()))
        (grant,) = await self.answers(stream)
        assert isinstance(grant, Grant)
        return grant

    def allowed(self) -> dict[str, set[str]]:
        peers = self.wg.devices["rz-seed"].peers
        return {
            name: {str(n) for n in peers[key(name)].allowed_ips} for name in ("n1", "n2", "evil") if key(name) in peers
        }


async def make_rig(host: FakeHost, wg: FakeWireGuard) -> Rig:
    plane = await DataPlane.open(wg, FakeNetStack(host), "rz-seed", "seed-server")
    rig = Rig(host, wg)
    rig.server = SeedServer(
        CHARTER,
        await Generations.find(plane, Names("rz-seed", 51820), 1420),
        rig.allocate,
        rig.sent.append,
        resync_s=60.0,
        warden=Warden(lambda: rig.wall),
    )
    return rig


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    async with loops.running(rig.server.run, rig.events):
        yield rig
