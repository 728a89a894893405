"""The whole tunnel on the kernel's data plane: real daemons, a real proxy, kernel WireGuard at both ends.

Runs only inside the virtual machine (tests/kernel/test_in_vm.py names it): it steps the machine's clock.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from agent.__main__ import main
from lab import addresses
from lab.daemons import Daemon
from lab.faults import FAULTS, Scene, suffer
from lab.lab import Lab
from lab.processes import wait_until

FAULT = {fault.name: fault for fault in FAULTS}
#: Interpreted code is 13 to 20 times slower here: outages are counted outside, here only that traffic comes back.
PATIENCE_S = 20.0  # and what RHIZOME_LAB_PATIENCE makes of it


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("haproxy-sni") as lab:  # Envoy takes longer to start here than all the rest
        scene = Scene(lab, lab.seed_server(), lab.shoot_client())
        scene.server.start()
        wait_until(
            lambda: bool(lab.seed.run(["ss", "-Hltn", "sport = :443"]).stdout), "the server listening", PATIENCE_S, 0.5
        )
        scene.client.start()
        scene.client.wait_ready(PATIENCE_S)
        scene.server.wait_ready(PATIENCE_S)
        yield scene


def test_both_ends_took_the_kernel(scene: Scene) -> None:
    for daemon in (scene.server, scene.client):
        assert daemon.status().backend == "kernel"
    for machine, ifname in ((scene.lab.seed, "rz-seed"), (scene.lab.node, "rz-shoot")):
        assert (
            json.loads(machine.run(["ip", "-d", "-j", "link", "show", ifname]).stdout)[0]["linkinfo"]["info_kind"]
            == "wireguard"
        )


@pytest.mark.parametrize("family", [4, 6])
def test_node_pod_and_service_are_reached(scene: Scene, family: addresses.Family) -> None:
    for target in addresses.targets():
        page = json.loads(scene.lab.seed.run(["curl", "-sS", "-m", "20", target.url(family)]).stdout)
        assert page["machine"] == ("node1" if target.name == "node" else "pod1")
        if target.answers_ping:
            scene.lab.seed.run(["ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", target.address[family]])


def test_datagrams_of_every_size_and_a_transfer_arrive(scene: Scene) -> None:
    sizes = "1,63,64,512,1280,1391,1392,1393,1420,1500,9000,65000"
    report = scene.lab.seed.run_tool("datagrams", addresses.pod(1).v4, addresses.ECHO_PORT, sizes, 10)
    assert report["missing"] == []
    moved = scene.lab.seed.run_tool(
        "transfer", addresses.pod(1).v4, addresses.BULK_PORT, 3_000_000, "down", timeout_s=120
    )
    assert moved["intact"]


def indexes(scene: Scene) -> list[int]:
    """Of both devices: one that was made anew has another index."""
    links = ((scene.lab.seed, "rz-seed"), (scene.lab.node, "rz-shoot"))
    return [json.loads(machine.run(["ip", "-j", "link", "show", name]).stdout)[0]["ifindex"] for machine, name in links]


def excused(scene: Scene) -> int:
    """Packets lost to the slow machine, each counted where it was lost: by the relays, which drop what waited too long for a
    processor, and by the node's connection tracking, which drops the second packet of a new flow when two arrive at once."""
    paths = [path for daemon in (scene.server, scene.client) for path in daemon.status().paths]
    late = sum(count for path in paths for reason, count in path.drops if reason in ("cap", "codel"))
    names, *rows = scene.lab.node.run(["cat", "/proc/net/stat/nf_conntrack"]).stdout.splitlines()
    column = names.split().index("insert_failed")
    return late + sum(int(row.split()[column], 16) for row in rows)


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_killed_daemon_loses_no_packet_and_the_next_one_adopts_the_device(scene: Scene, role: str) -> None:
    daemon: Daemon = getattr(scene, role)
    before, counted = indexes(scene), excused(scene)
    wait_until(scene.reaches_the_pod, "traffic before the end of the daemon", PATIENCE_S)
    with scene.lab.seed.probe("icmp", addresses.pod(1).v4, rate=100) as killed:
        time.sleep(1)
        daemon.kill()
        time.sleep(4)
    # A starting interpreter takes all of a processor here for many seconds, so the question comes less often.
    with scene.lab.seed.probe("icmp", addresses.pod(1).v4, rate=10) as started:
        daemon.start()
        daemon.wait_ready(PATIENCE_S)
    time.sleep(3)  # the daemons ask their carriers for counts once a second
    assert killed.report.sent > 300 and started.report.sent > 10
    lost = killed.report.lost + started.report.lost
    assert lost <= excused(scene) - counted, f"{killed.report} {started.report}"
    assert indexes(scene) == before


@pytest.mark.parametrize(
    "name", ["server_device_deleted", "client_device_deleted", "server_routes_flushed", "client_nft_flushed"]
)
def test_what_is_broken_by_hand_is_repaired(scene: Scene, name: str) -> None:
    suffer(scene, FAULT[name], PATIENCE_S)


@pytest.mark.parametrize("step", ["+3600", "-7200"])
def test_a_stepped_clock_stops_nothing(scene: Scene, step: str) -> None:
    """WireGuard refuses a handshake that is older than the last one (TAI64N, whitepaper 5.1): sessions that run go on."""
    wait_until(scene.reaches_the_pod, "traffic before the step", PATIENCE_S)
    with scene.lab.seed.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=50) as probe:
        time.sleep(1)
        subprocess.run(["date", "-s", f"@{int(time.time()) + int(step)}"], check=True, capture_output=True)
        time.sleep(3)
    assert probe.report.lost == 0, str(probe.report)
    assert scene.client.ready() and scene.server.ready()


def test_wireguards_keys_are_replaced_under_traffic(scene: Scene) -> None:
    """As tests/netns/test_rotation.py does it, which counts more packets."""
    ends = ((scene.server, "rz-seed-b"), (scene.client, "rz-shoot-b"))
    with scene.lab.seed.probe("icmp", addresses.pod(1).v4, rate=10) as probe:
        runtime = scene.lab.seed.directory / "run" / "rhizome"
        assert main(["rotate", "--wireguard-keys", "--runtime-dir", str(runtime)]) == 0

        def replaced() -> bool:
            found = [daemon.machine.run(["wg", "show", "interfaces"]).stdout.split() for daemon, _ in ends]
            return found == [[ifname] for _, ifname in ends]

        wait_until(replaced, "the new devices, and no other ones", 4 * PATIENCE_S, 0.5)
    assert probe.report.sent > 10 and probe.report.lost == 0, f"{probe.report}"
    assert dict(scene.server.status().counters.rotations) == {"done": 1}
