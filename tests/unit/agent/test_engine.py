"""The loop over the fake host: it repairs drift, it does not spin, and it leaves everything when it ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest

from agent.engine import MANY_PEERS, Engine, Pass, observe
from agent.errors import ConfigError, HostError
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.host import WireGuardStep
from agent.model import Device, DeviceState, Peer, PrivateKey, PublicKey, Route, Tunnel

NETWORK = ip_network("10.1.0.0/16")
DEVICE = Device(
    "rz0",
    PrivateKey(b"k" * 32),
    listen_port=51820,
    alias="rhizome test e1",
    addresses=frozenset({ip_interface("192.168.128.1/32")}),
    peers=frozenset({Peer(PublicKey(b"p" * 32), frozenset({NETWORK}))}),
)
WANT = Tunnel((DEVICE,), frozenset({Route(NETWORK, "rz0")}), "table inet rhizome {}")

MANY = frozenset(
    Peer(PublicKey(number.to_bytes(32, "big")), frozenset({ip_network(f"10.2.{number // 256}.{number % 256}/32")}))
    for number in range(MANY_PEERS)
)


class Rig:
    def __init__(self, resync_s: float = 60.0) -> None:
        self.host = FakeHost()
        self.wg = FakeWireGuard(self.host)
        self.want = WANT
        self.passes: list[Pass] = []
        self.reads = 0
        self.engine = Engine(self.wg, FakeNetStack(self.host), lambda: self.want, self.passes.append, resync_s=resync_s)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    task = asyncio.ensure_future(rig.engine.run())
    await asyncio.wait_for(rig.engine.settled(), 2)
    yield rig
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_it_reaches_what_is_desired_and_then_is_idle(rig: Rig) -> None:
    assert rig.passes[0].created == {"rz0"} and rig.passes[0].error is None
    await asyncio.wait_for(rig.engine.settled(), 2)
    assert rig.passes[-1].steps == () and rig.passes[-1].created == frozenset()


@pytest.mark.parametrize("act", ["device", "routes", "firewall", "down"])
async def test_it_repairs_what_others_break_because_netlink_says_so(rig: Rig, act: str) -> None:
    done = len(rig.passes)
    match act:
        case "device":
            rig.wg.kill("rz0")
        case "routes":
            rig.host.routes.clear()
            rig.host.touch()
        case "firewall":
            rig.host.set_firewall(None)
        case "down":
            rig.host.set_up("rz0", False)
    async with asyncio.timeout(2):
        while not any(p.steps and p.error is None for p in rig.passes[done:]):
            await asyncio.sleep(0.01)
    await asyncio.wait_for(rig.engine.settled(), 2)
    assert rig.host.routes[(NETWORK, 0)].ifname == "rz0"
    assert rig.host.links["rz0"].up and rig.host.firewall == WANT.firewall


@pytest.mark.parametrize("peers", [DEVICE.peers, MANY], ids=["few peers", "many peers"])
async def test_what_wireguard_does_not_tell_is_found_by_the_resync(peers: frozenset[Peer]) -> None:
    rig = Rig(resync_s=0.05)
    rig.want = replace(WANT, devices=(replace(DEVICE, peers=peers),))
    task = asyncio.ensure_future(rig.engine.run())
    await asyncio.wait_for(rig.engine.settled(), 2)
    rig.wg.devices["rz0"].peers.clear()
    async with asyncio.timeout(2):
        while not rig.wg.devices["rz0"].peers:
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def crowd(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A device with many peers, which has been reached; `rig.reads` are those of WireGuard from then on."""
    rig.want = replace(WANT, devices=(replace(DEVICE, peers=MANY),))
    await asyncio.wait_for(rig.engine.settled(), 2)
    read = rig.wg.read

    async def counted(ifname: str) -> DeviceState | None:
        rig.reads += 1
        return await read(ifname)

    monkeypatch.setattr(rig.wg, "read", counted)
    return rig


async def test_a_device_with_many_peers_is_not_read_again_for_each_change_that_is_desired(crowd: Rig) -> None:
    moved = Peer(PublicKey(b"m" * 32), frozenset({ip_network("10.2.0.7/32")}))
    gone = next(peer for peer in MANY if ip_network("10.2.0.7/32") in peer.allowed_ips)
    peers = MANY - {gone} | {moved, replace(gone, allowed_ips=frozenset())}
    for wanted in (peers, MANY, peers):
        crowd.want = replace(WANT, devices=(replace(DEVICE, peers=wanted),))
        await asyncio.wait_for(crowd.engine.settled(), 2)
        state = await FakeWireGuard.read(crowd.wg, "rz0")
        assert state is not None and state.peers == wanted
    assert crowd.reads == 0


async def test_what_is_wanted_is_done_before_a_device_with_many_peers_is_read_again(
    crowd: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read takes a second with thousands, and a client that died must not wait for it."""
    crowd.engine._remembered_until = 1.0
    done: list[str] = []
    read, apply = crowd.wg.read, crowd.wg.apply

    async def noted(ifname: str) -> DeviceState | None:
        done.append("read")
        return await read(ifname)

    async def applied(steps: Sequence[WireGuardStep]) -> None:
        done.append("apply")
        await apply(steps)

    monkeypatch.setattr(crowd.wg, "read", noted)
    monkeypatch.setattr(crowd.wg, "apply", applied)
    crowd.want = replace(WANT, devices=(replace(DEVICE, peers=MANY - {min(MANY, key=str)}),))
    async with asyncio.timeout(5):
        await crowd.engine.settled()
        while len(done) < 2:
            await asyncio.sleep(0.01)
    assert done == ["apply", "read"]


async def test_a_device_with_many_peers_is_read_again_after_trouble(crowd: Rig) -> None:
    crowd.wg.fail_after(0)
    crowd.want = replace(WANT, devices=(replace(DEVICE, peers=MANY, listen_port=51821),))
    await asyncio.wait_for(crowd.engine.settled(), 5)
    assert crowd.reads == 1


async def test_a_device_with_many_peers_is_read_again_when_somebody_changed_the_host(crowd: Rig) -> None:
    crowd.wg.devices["rz0"].peers.clear()
    crowd.host.routes.clear()
    crowd.host.touch()
    async with asyncio.timeout(2):
        while len(crowd.wg.devices["rz0"].peers) < MANY_PEERS:
            await asyncio.sleep(0.01)
    assert crowd.reads == 1


async def test_a_device_with_many_peers_that_is_gone_is_made_again_with_all_of_them(crowd: Rig) -> None:
    crowd.wg.kill("rz0")
    async with asyncio.timeout(2):
        while len(crowd.wg.devices["rz0"].peers if "rz0" in crowd.wg.devices else ()) < MANY_PEERS:
            await asyncio.sleep(0.01)


async def test_a_failing_step_is_tried_again_without_spinning(rig: Rig) -> None:
    rig.wg.fail_after(0)
    before = len(rig.passes)
    rig.want = Tunnel(
        (replace(DEVICE, listen_port=51821),),
        WANT.routes,
        WANT.firewall,
    )
    await asyncio.wait_for(rig.engine.settled(), 5)
    tried = rig.passes[before:]
    assert isinstance(tried[0].error, HostError) and tried[-1].error is None
    assert len(tried) < 10
    assert rig.wg.devices["rz0"].listen_port == 51821


async def test_cancelling_leaves_the_data_plane(rig: Rig) -> None:
    assert rig.host.links["rz0"].up
    assert rig.wg.devices["rz0"].peers


async def test_settled_waits_for_a_pass_that_began_later(rig: Rig) -> None:
    rig.want = Tunnel((DEVICE,), WANT.routes | {Route(ip_network("10.2.0.0/16"), "rz0")}, WANT.firewall)
    await asyncio.wait_for(rig.engine.settled(), 2)
    assert (ip_network("10.2.0.0/16"), 0) in rig.host.routes


async def test_a_foreign_device_under_our_name_is_refused_in_words() -> None:
    rig = Rig()
    rig.host.add_link("rz0", "veth")
    with pytest.raises(ConfigError, match="not WireGuard"):
        await observe(rig.wg, FakeNetStack(rig.host), ["rz0"])
    assert isinstance((await rig.engine.once()).error, ConfigError)


async def test_a_wireguard_device_of_somebody_else_is_refused_in_words() -> None:
    rig = Rig()
    await rig.engine.once()
    rig.host.links["rz0"].alias = "made by wg-quick"
    with pytest.raises(ConfigError, match="did not make"):
        await observe(rig.wg, FakeNetStack(rig.host), ["rz0"])
    rig.host.links["rz0"].alias = ""
    with pytest.raises(ConfigError, match="did not make"):
        await observe(rig.wg, FakeNetStack(rig.host), ["rz0"])
    rig.wg.devices["rz0"].peers.clear()
    assert (await observe(rig.wg, FakeNetStack(rig.host), ["rz0"])).tunnel.devices, (
        "one that we were interrupted in making"
    )
