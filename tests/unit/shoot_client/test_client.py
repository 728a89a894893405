"""The client's behaviour over the fake host: what a grant does to the node, kicks, adoption, and a server that is not ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.carrier.api import Close, Command, DialFailed, Down, Event, Message, Ready, Send, Up
from agent.client.client import Client
from agent.client.keeper import Keeper
from agent.dataplane import DataPlane
from agent.enrolment import digest_of
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakePeer, FakeWireGuard
from agent.guard import Reason, Refusal
from agent.identity import Identity, Role
from agent.messages import Credential, Enroll, Facts, Grant, Offer, Refuse, encode, parse
from agent.model import Endpoint, PresharedKey, PublicKey, networks
from agent.session import State
from shoot_client.desired import Node, ShootRole
from tests.unit import loops

CP = "shoot--garden--a"
SERVER = str(Identity(CP, Role.SEED_SERVER))
KEY = PublicKey(b"s" * 32)
GRANT = Grant(
    version=1,
    epoch="e1",
    public_keys=(("stream", KEY),),
    addresses=(ip_address("192.168.128.2"),),
    servers=(ip_address("192.168.128.1"),),
    tunnel_networks=networks(["192.168.128.0/17"]),
    carries=networks(["10.250.0.2/32", "100.96.1.0/24"]),
    refused=(),
    mtu_bytes=1420,
    persistent_keepalive_s=25,
    lifetime_s=3600.0,
    preshared_key=PresharedKey(b"p" * 32),
)
OFFER = Offer(networks(["10.250.0.2/32"]), networks(["100.96.1.0/24"]))


@dataclass
class Rig:
    host: FakeHost
    wg: FakeWireGuard
    client: Client = field(init=False)
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    sent: list[Command] = field(default_factory=list)
    forbidden: tuple[Refusal, ...] = ()

    def hear(self, *events: Event) -> None:
        for event in events:
            self.events.put_nowait(event)

    def connect(self, grant: Grant = GRANT, stream: int = 1) -> None:
        self.hear(Ready(4500, 1), Up(stream, SERVER, "192.0.2.1:8443", "SNI", 1), Message(stream, encode(grant)))

    async def until(self, seen: Callable[[], object]) -> None:
        """Wait until it is true."""
        async with asyncio.timeout(3):
            while not seen():
                await asyncio.sleep(0.005)

    @property
    def peers(self) -> dict[PublicKey, FakePeer]:
        device = self.wg.devices.get("rz-shoot")
        return dict(device.peers) if device else {}

    def said(self) -> list[object]:
        return [parse(c.text) for c in self.sent if isinstance(c, Send)]


async def _rig(host: FakeHost, wg: FakeWireGuard) -> Rig:
    plane = await DataPlane.open(wg, FakeNetStack(host), "rz-shoot", "shoot-client")
    rig = Rig(host, wg)
    rig.client = Client(
        ShootRole(Node(True)),
        plane,
        OFFER,
        rig.sent.append,
        lambda asked: tuple(refusal for refusal in rig.forbidden if refusal.network in asked),
        control_plane=CP,
        wireguard_port=51877,
        mtu_bytes=1420,
        resync_s=60.0,
        software="test",
    )
    return rig


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    async with loops.running(rig.client.run, rig.events):
        yield rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    host = FakeHost()
    async with running(await _rig(host, FakeWireGuard(host))) as rig:
        yield rig


async def test_it_enrols_with_its_key_and_becomes_what_the_grant_says(rig: Rig) -> None:
    rig.connect()
    await rig.until(lambda: KEY in rig.peers and rig.host.routes)
    enroll = rig.said()[0]
    assert isinstance(enroll, Enroll) and enroll.offer == OFFER
    assert dict(enroll.public_keys)["stream"] == rig.client.plane.incarnation.public_key
    peer = rig.wg.devices["rz-shoot"].peers[KEY]
    assert peer.endpoint == Endpoint(ip_address("127.0.0.1"), 4500) and peer.preshared_key == GRANT.preshared_key
    assert rig.host.sysctls == {"net.ipv4.ip_forward": "1"}
    assert rig.host.firewall is not None and "100.96.1.0/24" in rig.host.firewall


async def test_a_server_of_another_control_plane_is_left_at_once(rig: Rig) -> None:
    rig.hear(Up(1, str(Identity("shoot--garden--b", Role.SEED_SERVER)), "192.0.2.1:8443", "", 1))
    await rig.until(lambda: rig.sent)
    close = rig.sent[0]
    assert isinstance(close, Close) and "shoot--garden--b" in close.reason
    rig.hear(Up(2, str(Identity(CP, Role.SHOOT_CLIENT, "evil")), "192.0.2.1:8443", "", 1))
    await rig.until(lambda: len(rig.sent) > 1)
    assert isinstance(rig.sent[1], Close) and rig.client.session.state is State.DOWN


async def test_a_new_epoch_makes_the_peer_anew(rig: Rig) -> None:
    rig.connect()
    await rig.until(lambda: KEY in rig.peers)
    rig.wg.devices["rz-shoot"].peers[KEY].latest_handshake = 1.0
    rig.hear(Message(1, encode(replace(GRANT, epoch="e2"))))
    await rig.until(lambda: KEY in rig.peers and rig.peers[KEY].latest_handshake is None)


async def test_a_grant_that_is_not_renewed_ends(rig: Rig) -> None:
    rig.connect(replace(GRANT, lifetime_s=0.5))
    await rig.until(lambda: KEY in rig.peers)
    rig.hear(Down(1, "dead", ""))
    await rig.until(lambda: KEY not in rig.peers and not rig.host.routes)
    assert rig.client.session.grant is None


async def test_a_refusal_ends_it_at_once(rig: Rig) -> None:
    rig.connect()
    await rig.until(lambda: KEY in rig.peers)
    rig.hear(Message(1, encode(Refuse("role", "observers may not enrol"))))
    await rig.until(lambda: KEY not in rig.peers)
    assert any(isinstance(c, Close) and c.retry_in_s > 10 for c in rig.sent)


async def test_the_server_cannot_route_what_this_node_needs(rig: Rig) -> None:
    rig.forbidden = (Refusal(networks(["192.168.128.0/17"])[0], Reason.CAPTURES),)
    rig.connect()
    await rig.until(lambda: rig.client.live.refused and KEY in rig.peers)
    await rig.client.engine.settled()
    assert not rig.host.routes and not rig.wg.devices["rz-shoot"].peers[KEY].allowed_ips


async def test_a_restarted_client_touches_nothing_until_the_server_has_spoken() -> None:
    host = FakeHost()
    wg = FakeWireGuard(host)
    async with running(await _rig(host, wg)) as first:
        first.connect()
        await first.until(lambda: KEY in first.peers and first.host.routes)
    before = dict(host.routes), host.firewall, first.peers
    second = await _rig(host, wg)
    assert second.client.plane.incarnation == first.client.plane.incarnation
    async with running(second):
        second.hear(Ready(4500, 1), DialFailed("tcp", "refused", 0.1))
        await asyncio.sleep(0.1)
        assert (dict(host.routes), host.firewall, second.peers) == before
        second.hear(Up(5, SERVER, "192.0.2.1:8443", "SNI", 1, replay=(encode(GRANT),)))
        await second.until(lambda: second.client.live.last_pass)
        await second.client.engine.settled()
        assert (dict(host.routes), host.firewall, second.peers) == before
        assert [type(m) for m in second.said()] == [Enroll]


async def test_new_facts_are_told(rig: Rig) -> None:
    rig.connect()
    await rig.until(lambda: KEY in rig.peers)
    rig.client.set_offer(Offer())
    assert rig.said()[-1] == Facts(Offer())


async def test_a_credential_is_kept_in_the_place_of_what_the_stream_was_opened_with(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("rzt1_old")
    rig.client.keeper = Keeper(file)
    rig.connect(replace(GRANT, credential=Credential("eyJ.a.b", digest_of("rzt1_old"))))
    async with asyncio.timeout(3):
        while file.read_text() != "eyJ.a.b\n":
            await asyncio.sleep(0.005)


async def test_a_client_that_cannot_keep_its_credential_says_so(rig: Rig, tmp_path: Path) -> None:
    keeper = rig.client.keeper = Keeper(tmp_path / "missing")
    rig.connect(replace(GRANT, credential=Credential("eyJ.a.b", digest_of("rzt1_old"))))
    await rig.until(lambda: keeper.trouble)
    assert "cannot be kept in" in keeper.trouble
