"""The firewall under real packets: what the shoot may, what the seed may, and what nobody may."""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.firewall import Firewall, render
from agent.nft import _REPLACE
from lab.inside import Inside
from tests.netns.firewall_landscape import (
    FAMILIES,
    PODS,
    SERVICES,
    TUNNEL,
    Landscape,
    knock,
    networks,
    pick,
    silent,
    talk,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "firewall"
DEVICES = frozenset({"tun0"})
SEED = Firewall(DEVICES, networks(*TUNNEL, *PODS, *SERVICES), mtu_bytes=1400, local_ports=frozenset({51820}))
NODE = Firewall(
    DEVICES,
    sources=networks(*TUNNEL, "10.50.0.0/24", "fd50::/64"),
    initiators=networks(*TUNNEL),
    destinations=networks(*TUNNEL, *SERVICES),
    masquerade=networks(*SERVICES),
    mtu_bytes=1400,
)


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_what_was_rendered_is_what_nft_lists(path: Path) -> None:
    """Nothing depends on it, but it makes a listing easy to compare; another version of nft may say it in other words."""
    inside = Inside()
    try:
        with inside.entered():
            subprocess.run(["nft", "-f", str(path)], check=True)
            listing = subprocess.run(
                ["nft", "-s", "list", "ruleset"], check=True, capture_output=True, text=True
            ).stdout
    finally:
        inside.close()
    assert listing == path.read_text()


@FAMILIES
def test_the_shoot_reaches_nothing_of_the_seed(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    here, behind, node, pod = pick(
        v6, "192.168.128.1", "fd8f::1", "10.50.0.9", "fd50::9", "192.168.128.2", "fd8f::2", "10.1.0.9", "fd01::9"
    )
    wildcard = "::" if v6 else "0.0.0.0"
    servers = [land.listen(land.seed, wildcard), land.listen(land.workload, wildcard)]
    servers += [land.udp(land.seed, wildcard), land.udp(land.workload, wildcard)]
    clients = [land.tcp(land.node, node), land.tcp(land.node, node), land.tcp(land.pod, pod), land.tcp(land.pod, pod)]
    knock(land.port, clients, [here, behind, here, behind])
    for sender in (land.udp(land.node, node), land.udp(land.pod, pod)):
        for address in (here, behind):
            sender.sendto(b"?", (address, land.port))
    for host in (land.node, land.pod):
        for address in (here, behind):
            with pytest.raises(subprocess.CalledProcessError):
                land.run(host, f"ping -c1 -W0.2 {address}")
    assert silent(*servers, *clients)
    assert land.counter(land.seed, "denied") >= 12
    assert land.counter(land.seed, "spoofed") == 0


@FAMILIES
def test_the_seed_reaches_the_shoot_and_gets_its_answers(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    workload, seed, pod, node = pick(
        v6, "10.50.0.9", "fd50::9", "192.168.128.1", "fd8f::1", "10.1.0.9", "fd01::9", "192.168.128.2", "fd8f::2"
    )
    assert talk(land.tcp(land.workload, workload), land.listen(land.pod, pod), pod)[0] == workload
    assert talk(land.tcp(land.seed, seed), land.listen(land.node, node), node)[0] == seed
    asker, answerer = land.udp(land.workload, workload), land.udp(land.pod, pod)
    asker.sendto(b"question", (pod, land.port))
    answerer.sendto(b"answer", answerer.recvfrom(16)[1])
    assert asker.recv(16) == b"answer"
    land.run(land.workload, f"ping -c1 -W1 {pod}")


@FAMILIES
def test_a_source_that_is_not_the_shoots_does_not_pass_not_even_as_an_answer(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    seed, workload = pick(v6, "192.168.128.1", "fd8f::1", "10.50.0.9", "fd50::9")
    (outside,) = pick(v6, "203.0.113.5", "2001:db8::5")
    land.run(land.node, f"ip address replace {outside} dev lo")
    waiting = land.udp(land.seed, seed)
    land.run(land.seed, f"ip route replace {outside} dev eth0")  # the seed knows it elsewhere, and has just asked it
    waiting.sendto(b"question", (outside, land.port))
    liar = land.udp(land.node, outside)
    liar.sendto(b"lie", (seed, land.port))
    liar.sendto(b"lie", (workload, land.port))
    assert silent(waiting)
    assert land.counter(land.seed, "spoofed") == 2


@FAMILIES
def test_errors_of_our_own_connections_come_back(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    workload, pod = pick(v6, "10.50.0.9", "fd50::9", "10.1.0.9", "fd01::9")
    asker = land.udp(land.workload, workload)
    asker.connect((pod, land.port))
    asker.send(b"nobody listens here")
    with pytest.raises(ConnectionRefusedError):
        asker.recv(16)

    # Path MTU discovery (RFC 1191, RFC 8201).
    level, discover, do, mtu = (
        (socket.IPPROTO_IPV6, 23, 2, 24) if v6 else (socket.IPPROTO_IP, 10, 2, 14)
    )  # MTU_DISCOVER, PMTUDISC_DO, MTU
    asker.setsockopt(level, discover, do)
    with land.narrowed(1300):
        asker.send(bytes(1330))
        deadline = time.monotonic() + 2
        while asker.getsockopt(level, mtu) != 1300:
            assert time.monotonic() < deadline, "the ICMP error did not come back"
            time.sleep(0.01)


def test_wireguards_port_hears_only_its_own_host(land: Landscape) -> None:
    land.apply(land.seed, SEED)
    port = land.udp(land.seed, "0.0.0.0", 51820)
    land.udp(land.workload, "10.50.0.9").sendto(b"from outside", ("10.50.0.1", 51820))
    assert silent(port)
    assert land.counter(land.seed, "not_local") == 1
    land.udp(land.seed, "127.0.0.1").sendto(b"from the relay", ("127.0.0.1", 51820))
    assert port.recv(32) == b"from the relay"


def test_no_packet_slips_through_while_the_table_is_replaced(land: Landscape) -> None:
    land.apply(land.seed, SEED)
    open_port, sender = land.udp(land.seed, "192.168.128.1"), land.udp(land.node, "192.168.128.2")
    answerer = land.udp(land.pod, "10.1.0.9")
    asker = land.udp(land.workload, "10.50.0.9")
    other = replace(SEED, mtu_bytes=1380)
    sent = 0
    for turn in range(25):
        with land.seed.entered():
            nft = subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, text=True)
        assert nft.stdin is not None
        nft.stdin.write(_REPLACE + render(other if turn % 2 else SEED))
        nft.stdin.close()
        while nft.poll() is None:
            sender.sendto(b"?", ("192.168.128.1", land.port))
            sent += 1
            asker.sendto(b"question", ("10.1.0.9", land.port))  # and what may pass goes on passing
            answerer.sendto(b"answer", answerer.recvfrom(16)[1])
            assert asker.recv(16) == b"answer"
        assert nft.returncode == 0
    assert sent > 250
    assert silent(open_port)


@FAMILIES
def test_the_node_opens_only_what_was_granted(land: Landscape, v6: bool) -> None:
    land.apply(land.node, NODE)
    seed, workload, node, pod, service = pick(
        v6,
        *("192.168.128.1", "fd8f::1", "10.50.0.9", "fd50::9", "192.168.128.2", "fd8f::2"),
        *("10.1.0.9", "fd01::9", "10.96.0.1", "fd96::1"),
    )
    (eth0,) = pick(v6, "10.1.0.1", "fd01::1")
    wildcard = "::" if v6 else "0.0.0.0"
    on_pod, on_node = land.listen(land.pod, wildcard), land.listen(land.node, wildcard)

    # A service is granted and its pod is not: what counts is where the packet was sent, not where it is translated to.
    assert talk(land.tcp(land.seed, seed), on_pod, service)[0] == eth0, "masqueraded: the pod sees the node"
    assert talk(land.tcp(land.seed, seed), on_node, node)[0] == seed
    assert land.counter(land.node, "opened") == 2

    refused = [land.tcp(land.seed, seed), land.tcp(land.seed, seed)]
    knock(land.port, refused, [pod, eth0])
    stranger = land.tcp(land.workload, workload)
    knock(land.port, [stranger], [service])
    assert silent(on_pod, on_node, stranger, *refused)
    assert land.counter(land.node, "denied") >= 3


@FAMILIES
def test_pods_of_the_shoot_cannot_be_told_apart_from_their_node_only_where_wanted(land: Landscape, v6: bool) -> None:
    seed, pod = pick(v6, "192.168.128.1", "fd8f::1", "10.1.0.9", "fd01::9")
    on_pod = land.listen(land.pod, "::" if v6 else "0.0.0.0")
    land.apply(land.node, replace(NODE, destinations=networks(*PODS)))
    assert talk(land.tcp(land.seed, seed), on_pod, pod)[0] == seed, "a range outside of `masquerade` keeps its sources"


@FAMILIES
@pytest.mark.parametrize("clamp_on", ["seed", "node"])
def test_tcp_segments_fit_into_the_tunnel_both_ways(land: Landscape, v6: bool, clamp_on: str) -> None:
    workload, pod = pick(v6, "10.50.0.9", "fd50::9", "10.1.0.9", "fd01::9")
    everything = networks("0.0.0.0/0", "::/0")
    wide_open = replace(
        NODE, sources=everything, initiators=everything, destinations=everything, masquerade=frozenset()
    )
    land.apply(land.seed if clamp_on == "seed" else land.node, SEED if clamp_on == "seed" else wide_open)
    client, listener = land.tcp(land.workload, workload), land.listen(land.pod, pod)
    client.connect((pod, land.port))
    served, _ = listener.accept()
    with served:
        largest = 1400 - (60 if v6 else 40) - 12  # less the timestamps' 12 bytes
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == largest
        assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == largest
