"""Cleanup removes what is ours and nothing else."""

from dataclasses import replace

from agent.cleanup import find, remove
from agent.dataplane import DataPlane
from agent.fakes.host import FakeHost
from agent.fakes.netstack import FakeNetStack
from agent.fakes.wireguard import FakeWireGuard
from agent.model import Peer, PublicKey, Route, Tunnel, networks


async def test_ours_goes_and_the_rest_stays() -> None:
    host = FakeHost()
    kernel, userspace, net = FakeWireGuard(host), FakeWireGuard(host, kind="tun"), FakeNetStack(host)
    plane = await DataPlane.open(userspace, net, "rz0", "seed-server")
    prefixes = networks(["10.1.0.0/16", "fd00::/64"])
    device = plane.device(listen_port=51820, mtu_bytes=1420)
    device = replace(device, peers=frozenset({Peer(PublicKey(b"p" * 32), frozenset(prefixes))}))
    want = Tunnel((device,), frozenset(Route(p, "rz0") for p in prefixes), "table inet rhizome {}")
    assert (await plane.engine(lambda: want, lambda done: None, 30.0).once()).error is None
    host.add_link("wg-foreign", "wireguard", alias="somebody's")
    host.set_sysctl("net.ipv4.ip_forward", "1")

    steps = await find(net)
    assert [str(step).split(" dev")[0] for step in steps][:3] == [
        "ip route del 10.1.0.0/16",
        "ip route del fd00::/64",
        "ip link del rz0",
    ]
    await remove(steps, [kernel, userspace], net)

    assert set(host.links) == {"wg-foreign"}
    assert not host.routes and not host.rules and host.firewall is None
    assert host.sysctls == {"net.ipv4.ip_forward": "1"}
    assert await find(net) == ()
