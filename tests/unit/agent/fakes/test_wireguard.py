"""What the fake does beyond the contract (tests/contract/wireguard): it fails and dies on request."""

from __future__ import annotations

import errno
from ipaddress import ip_interface, ip_network

import pytest

from agent.errors import HostError
from agent.fakes.host import FakeHost
from agent.fakes.wireguard import FakeWireGuard
from agent.host import CreateDevice, SetDevice, SetPeer
from agent.keys import generate_private_key, public_key

CREATE = CreateDevice("wg0", 1420, "rhizome test 1")


async def test_an_injected_failure_leaves_the_steps_before_it_done_and_happens_once() -> None:
    wg = FakeWireGuard()
    await wg.create(CREATE)
    peers = [public_key(generate_private_key()) for _ in range(3)]
    steps = [SetPeer("wg0", peer) for peer in peers]
    wg.fail_after(2, errno.ENOBUFS)
    with pytest.raises(HostError) as caught:
        await wg.apply(steps)
    assert caught.value.errno == errno.ENOBUFS
    assert set(wg.devices["wg0"].peers) == set(peers[:2])
    await wg.apply(steps)
    assert set(wg.devices["wg0"].peers) == set(peers)


async def test_creating_and_deleting_fail_too() -> None:
    wg = FakeWireGuard()
    wg.fail_after(0)
    with pytest.raises(HostError):
        await wg.create(CREATE)
    assert wg.host.links == {}
    await wg.create(CREATE)
    wg.fail_after(0)
    with pytest.raises(HostError):
        await wg.delete("wg0")
    assert "wg0" in wg.host.links


async def test_a_killed_device_takes_its_addresses_along_and_tells_the_listeners() -> None:
    host = FakeHost()
    wg = FakeWireGuard(host, kind="tun")
    await wg.create(CREATE)
    host.add_address("wg0", ip_interface("10.0.0.1/32"))
    told = []
    host.listeners.append(lambda: told.append(1))
    wg.kill("wg0")
    assert told
    assert host.links == {}
    assert await wg.read("wg0") is None


async def test_a_device_that_somebody_made_again_is_empty() -> None:
    wg = FakeWireGuard()
    await wg.create(CREATE)
    await wg.apply([SetDevice("wg0", generate_private_key())])
    wg.host.delete_link("wg0")
    wg.host.add_link("wg0", "wireguard")
    state = await wg.read("wg0")
    assert state is not None
    assert state.private_key is None


async def test_what_a_test_does_to_a_peer_is_seen() -> None:
    wg = FakeWireGuard()
    await wg.create(CREATE)
    peer = public_key(generate_private_key())
    await wg.apply([SetPeer("wg0", peer, frozenset({ip_network("10.1.0.0/16")}))])
    wg.devices["wg0"].peers[peer].latest_handshake = 12.5
    state = await wg.read("wg0")
    assert state is not None
    assert [status.latest_handshake for status in state.statuses] == [12.5]
