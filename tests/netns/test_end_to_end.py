"""The main job with the real daemons: through every kind of proxy, over both address families, packets of every sort.

The same file runs on the kernel's own WireGuard: see tests/kernel.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab import addresses
from lab.addresses import Family, Pair
from lab.daemons import Daemon, program
from lab.front import KINDS
from lab.lab import Lab
from lab.processes import wait_until

pytestmark = pytest.mark.netns

FAMILIES: tuple[Family, Family] = (4, 6)
MTU_BYTES = 1420
#: The largest UDP payloads that fit one packet of the tunnel, IPv4 and IPv6, and their neighbours.
EDGES = [MTU_BYTES - header + more for header in (28, 48) for more in (-1, 0, 1)]
SIZES = ",".join(map(str, [1, 2, 100, *EDGES, 1500, 4000, 9000, 32000, 65000]))
#: In a virtual machine without hardware acceleration, a tenth of it is enough.
BULK_BYTES = int(os.environ.get("RHIZOME_TEST_BULK_BYTES", "500_000_000"))
#: "kernel" or "userspace" where the test has to be about that one.
BACKEND = os.environ.get("RHIZOME_TEST_BACKEND")


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A lab with both daemons running and ready."""

    lab: Lab
    server: Daemon
    clients: list[Daemon]


def establish(lab: Lab, nodes: int = 1) -> Tunnel:
    server, clients = lab.seed_server(), [lab.shoot_client(index) for index in range(1, nodes + 1)]
    for daemon in (server, *clients):
        daemon.start()
    for daemon in (*clients, server):
        daemon.wait_ready()
    return Tunnel(lab, server, clients)


WAYS = [(kind, 4) for kind in (*KINDS, "none")] + [("envoy-sni", 6), ("envoy-connect", 6), ("none", 6)]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0]}-ipv{way[1]}")
def tunnel(request: pytest.FixtureRequest) -> Iterator[Tunnel]:
    kind, underlay = request.param
    with Lab(kind, underlay=underlay) as lab:
        yield establish(lab)


def test_node_pod_and_service_answer(tunnel: Tunnel) -> None:
    """A pod sees its node, a node sees the seed server's end of the tunnel: no address of the seed shows in the shoot."""
    for target in addresses.targets():
        for family in FAMILIES:
            page = json.loads(tunnel.lab.seed.run(["curl", "-gsS", "-m5", target.url(family)]).stdout)
            assert page["machine"] == ("node1" if target.name == "node" else "pod1")
            if target.name == "node":
                assert page["client"] in tunnel.lab.tunnel_addresses(tunnel.lab.seed)
            else:
                assert page["client"] in (*addresses.node(1), *addresses.pod_gateway(1))


def test_it_came_the_right_way(tunnel: Tunnel) -> None:
    assert tunnel.lab.came_the_right_way(), (tunnel.lab.connected_to(), tunnel.lab.connected_from())


def test_udp_tcp_and_icmp_lose_nothing(tunnel: Tunnel) -> None:
    pod, node = addresses.pod(1), addresses.node(1)
    for kind, host, port in [
        ("udp", pod.v4, addresses.ECHO_PORT),
        ("udp", addresses.SERVICE.v6, addresses.ECHO_PORT),
        ("tcp", addresses.SERVICE.v4, addresses.ECHO_PORT),
        ("tcp", node.v6, addresses.ECHO_PORT),
        ("icmp", node.v4, 0),
        ("icmp", pod.v6, 0),
    ]:
        with tunnel.lab.seed.probe(kind, host, port, rate=50) as probe:
            time.sleep(0.5)
        assert probe.report.sent >= 20
        assert probe.report.lost == 0, f"{kind} to {host}: {probe.report}"


def test_datagrams_of_every_size_arrive(tunnel: Tunnel) -> None:
    for host in addresses.pod(1):
        report = tunnel.lab.seed.run_tool("datagrams", host, addresses.ECHO_PORT, SIZES)
        assert report["missing"] == []


@pytest.mark.parametrize("direction", ["down", "up"])
def test_bytes_arrive_intact(tunnel: Tunnel, direction: str) -> None:
    report = tunnel.lab.seed.run_tool(
        "transfer", addresses.SERVICE, addresses.BULK_PORT, BULK_BYTES // 20, direction, 4, timeout_s=300
    )
    assert report["intact"] is True


def test_the_shoot_still_lets_nothing_in_and_the_seed_neither(tunnel: Tunnel) -> None:
    lab = tunnel.lab
    ports = f"22,80,{addresses.HTTP_PORT},{addresses.ECHO_PORT},10250,51820,51877"
    doors = ",".join([*addresses.NAT_OUTSIDE, *(a for target in addresses.targets() for a in target.address)])
    assert lab.net.run_tool("scan", doors, ports, ports, 0.5)["answers"] == []
    assert lab.nat.run_tool("scan", ",".join(addresses.node(1)), ports, ports, 0.5)["answers"] == []
    tunnel_ends = lab.tunnel_addresses(lab.seed)
    assert len(tunnel_ends) == 2
    for machine in (lab.node, lab.pod):
        report = machine.run_tool("scan", ",".join(tunnel_ends), ports + f",{addresses.SERVER_PORT}", ports, 0.5)
        assert report["answers"] == []


def test_it_says_what_it_is(tunnel: Tunnel) -> None:
    if BACKEND is not None:
        assert {daemon.status().backend for daemon in (tunnel.server, *tunnel.clients)} == {BACKEND}
    assert tunnel.server.status().verdict.value == "UP"
    assert tunnel.clients[0].status().verdict.value == "UP"
    said = tunnel.lab.node.run([program("rhizome-agent"), "status"]).stdout
    assert said.startswith("UP")


# Landscapes of other shapes.


def test_half_a_gigabyte_arrives_intact(make_lab: type[Lab]) -> None:
    lab = make_lab("envoy-sni")
    establish(lab)
    report = lab.seed.run_tool("transfer", addresses.pod(1), addresses.BULK_PORT, BULK_BYTES, "down", timeout_s=600)
    assert report["intact"] is True
    assert report["bytes"] == BULK_BYTES


def test_two_nodes_answer_each_for_its_own(make_lab: type[Lab]) -> None:
    lab = make_lab("haproxy-sni", nodes=2)
    establish(lab, nodes=2)
    for index in (1, 2):
        for name, address in (("node", addresses.node(index)), ("pod", addresses.pod(index))):
            for family in FAMILIES:
                url = addresses.Target(name, address, addresses.HTTP_PORT, answers_ping=True).url(family)
                page = json.loads(lab.seed.run(["curl", "-gsS", "-m5", url]).stdout)
                assert page["machine"] == f"{name}{index}"
    assert "pod" in json.loads(lab.seed.run(["curl", "-gsS", "-m5", addresses.targets()[2].url()]).stdout)["machine"]


def test_a_small_underlay_carries_full_packets(make_lab: type[Lab]) -> None:
    """The stream is TCP: what the tunnel carries does not depend on the MTU under it."""
    lab = make_lab("envoy-connect-header", mtu_bytes=1280)
    establish(lab)
    # The nodes' and pods' own links have the small MTU too, so what the tunnel carries ends at the node.
    assert lab.seed.run_tool("datagrams", addresses.node(1).v4, addresses.ECHO_PORT, SIZES)["missing"] == []
    report = lab.seed.run_tool("transfer", addresses.pod(1), addresses.BULK_PORT, BULK_BYTES // 20, "down")
    assert report["intact"] is True


def test_every_address_of_the_server_is_tried(make_lab: type[Lab]) -> None:
    lab = make_lab("nginx-sni")
    nobody = Pair("198.51.100.200", "2001:db8:100::200")
    lab.resolve_server_to(nobody, addresses.PROXY)
    establish(lab)
    assert lab.came_the_right_way()


def test_an_idle_tunnel_stays(make_lab: type[Lab]) -> None:
    """Nothing is dialled again, nothing is logged, and the first packet after the pause is answered."""
    lab = make_lab("envoy-connect")
    tunnel = establish(lab)
    wait_until(lambda: tunnel.server.ready(), "the server being ready")
    time.sleep(2)
    before = [daemon.log() for daemon in (tunnel.server, *tunnel.clients)]
    connection = lab.net.run(["ss", "-Htn", "state", "established"]).stdout.split()[2:4]
    time.sleep(12)
    assert [daemon.log() for daemon in (tunnel.server, *tunnel.clients)] == before
    assert lab.net.run(["ss", "-Htn", "state", "established"]).stdout.split()[2:4] == connection
    lab.seed.run(["ping", "-c1", "-W1", addresses.pod(1).v4])
