"""A seed server and sidecars that leave, over the fake host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from agent.carrier.api import Down, Up
from agent.dataplane import DataPlane
from agent.denylist import DenyList
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.generations import Names
from agent.identity import Identity, Role
from agent.messages import Enroll, Grant, Offer, Refuse
from agent.model import Endpoint
from seed_server.direct import DirectSide, Secrets
from seed_server.generations import Generations
from seed_server.once import OnceFile
from seed_server.registry import Client
from seed_server.server import SeedServer
from seed_server.warden import Warden
from tests.unit.seed_server.rig import CHARTER, CP, Rig, key, running

API = Identity(CP, Role.SIDECAR, "api")
ENROLL = Enroll((("direct", key("api")),), Offer(), once=True)


async def make(once: OnceFile | None, left: Iterable[Client] = ()) -> Rig:
    """A server on a host of its own, with a direct path."""
    host = FakeHost()
    wg, net = FakeWireGuard(host), FakeNetStack(host)
    addresses = (ip_address("192.168.128.2"),)
    secrets = Secrets(b"s" * 32)
    plane = await DataPlane.open(wg, net, "rz-seed-direct", "seed-server-direct", secrets.device_key())
    endpoint = Endpoint(ip_address("10.1.0.7"), 51821)
    direct = DirectSide(plane, secrets, port=51821, mtu_bytes=1420, addresses=addresses, endpoints=(endpoint,))
    firewall = replace(CHARTER.firewall, devices=frozenset({"rz-seed", "rz-seed-direct"}))
    policy = replace(CHARTER.policy, no_once="", silence_s=600.0)
    charter = replace(CHARTER, policy=policy, firewall=firewall, direct_addresses=addresses)
    rig = Rig(host, wg)
    first = await DataPlane.open(wg, net, "rz-seed", "seed-server")
    rig.server = SeedServer(
        charter,
        Generations(first, Names("rz-seed", 51820), 1420),
        rig.allocate,
        rig.sent.append,
        resync_s=60.0,
        warden=Warden(time.time),
        direct=direct,
        once=once,
        left=left,
    )
    return rig


async def ask(rig: Rig, identity: Identity = API) -> object:
    rig.events.put_nowait(Up(1, str(identity), "10.1.0.9:4000", "", 1, credential_ends_at=time.time() + 86400))
    rig.say(1, ENROLL)
    return (await rig.answers(1))[0]


async def test_it_is_written_down_before_it_is_told_to_go(tmp_path: Path) -> None:
    file = OnceFile(tmp_path / "once.json")
    async with running(await make(file)) as rig:
        grant = await ask(rig)
        assert isinstance(grant, Grant) and grant.silence_s == 600.0 and grant.direct is not None
        assert str(key("api")) in (tmp_path / "once.json").read_text()
        assert key("api") in rig.wg.devices["rz-seed-direct"].peers and not rig.wg.devices["rz-seed"].peers
        psk = rig.wg.devices["rz-seed-direct"].peers[key("api")].preshared_key
        assert psk == grant.direct.preshared_key
        assert rig.server.direct is not None and rig.server.direct.prober.targets
        rig.events.put_nowait(Down(1, "closed", ""))
        async with asyncio.timeout(3):
            while rig.server.direct.prober.targets:
                await asyncio.sleep(0.005)
    (left,) = OnceFile(tmp_path / "once.json").load({ip_address("192.168.128.2"): API})
    async with running(await make(file, [left])) as after:
        async with asyncio.timeout(3):
            while "rz-seed-direct" not in after.wg.devices:
                await asyncio.sleep(0.005)
        again = after.wg.devices["rz-seed-direct"].peers[key("api")]
        assert again.preshared_key == psk and after.server.direct is not None
        assert after.server.direct.plane.incarnation.public_key == grant.direct.public_key
        assert not after.server.direct.prober.targets, "nobody answers there"


async def test_what_cannot_be_written_down_is_refused(tmp_path: Path) -> None:
    async with running(await make(OnceFile(tmp_path / "absent" / "once.json"))) as rig:
        said = await ask(rig)
        assert isinstance(said, Refuse) and said.reason == "store" and said.retry_after_s is not None


async def test_a_shoot_client_that_asks_for_it_gets_nothing(tmp_path: Path) -> None:
    async with running(await make(OnceFile(tmp_path / "once.json"))) as rig:
        said = await ask(rig, Identity(CP, Role.SHOOT_CLIENT, "n1"))
        assert isinstance(said, Refuse) and said.reason == "role"
        assert not rig.server.registry.clients and not (tmp_path / "once.json").exists()


async def test_one_that_left_is_turned_out_by_the_deny_list(tmp_path: Path) -> None:
    file = OnceFile(tmp_path / "once.json")
    async with running(await make(file)) as rig:
        assert isinstance(await ask(rig), Grant)
        rig.server.deny(DenyList(identities=frozenset({str(API)})))
        async with asyncio.timeout(5):
            while rig.wg.devices["rz-seed-direct"].peers:
                await asyncio.sleep(0.01)
            while OnceFile(tmp_path / "once.json").load({ip_address("192.168.128.2"): API}):
                await asyncio.sleep(0.01)
