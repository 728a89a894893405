"""Sidecars: programs of the control plane dial nodes, pods and services by their addresses, from pods of the seed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.__main__ import main
from lab import addresses
from lab.addresses import Family
from lab.daemons import Daemon, Value
from lab.faults import kill_programs
from lab.freeze import frozen
from lab.inside import entered
from lab.lab import Lab
from lab.namespaces import Machine
from lab.processes import wait_until

pytestmark = pytest.mark.netns

FAMILIES: tuple[Family, Family] = (4, 6)
NODE, POD, SERVICE = addresses.targets()
#: The second sidecar is a Prometheus that scrapes nodes, and nothing else.
RANGES = ["seed-pod-1=all", "prometheus*=nodes"]
BAIT_PORT = 8080


@dataclass(frozen=True, slots=True)
class Scene:
    """A lab with a seed server, a shoot client behind a proxy, and two sidecars, all ready."""

    lab: Lab
    server: Daemon
    client: Daemon
    apiserver: Daemon
    prometheus: Daemon


def start(lab: Lab, **settings: Value) -> Scene:
    server = lab.seed_server(sidecar_ranges=RANGES, **settings)
    scene = Scene(lab, server, lab.shoot_client(), lab.sidecar(1), lab.sidecar(2, "prometheus-0"))
    for daemon in (scene.server, scene.client, scene.apiserver, scene.prometheus):
        daemon.start()
    for daemon in (scene.client, scene.server, scene.apiserver, scene.prometheus):
        daemon.wait_ready()
    return scene


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("haproxy-sni", seed_pods=2) as lab:
        yield start(lab)


def get(machine: Machine, url: str, patience_s: float = 5.0) -> dict[str, str] | None:
    done = machine.run(["curl", "-gsS", f"-m{patience_s}", url], check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def reaches(machine: Machine, target: addresses.Target, family: Family = 4, patience_s: float = 0.5) -> bool:
    return get(machine, target.url(family), patience_s) is not None


def test_node_pod_and_service_are_dialled_by_their_addresses(scene: Scene) -> None:
    apiserver = scene.lab.seed_pods[0]
    for target in addresses.targets():
        for family in FAMILIES:
            page = get(apiserver, target.url(family))
            assert page is not None and page["machine"] == ("node1" if target == NODE else "pod1")


def test_each_has_its_own_address_and_its_own_ranges(scene: Scene) -> None:
    apiserver, prometheus = scene.lab.seed_pods
    own = [scene.lab.tunnel_addresses(machine) for machine in (apiserver, prometheus)]
    assert [len(found) for found in own] == [2, 2] and not set(own[0]) & set(own[1])
    for family in FAMILIES:
        assert reaches(prometheus, NODE, family, 5.0)
        assert not reaches(prometheus, POD, family) and not reaches(prometheus, SERVICE, family)
    (peer,) = scene.prometheus.status().peers
    assert set(peer.reaches) == set(addresses.SHOOT_NODES)


def test_one_that_routes_more_into_its_tunnel_than_it_may_is_dropped_by_the_server(scene: Scene) -> None:
    """Root in the pod has the device in its hands; the server does not care."""
    prometheus = scene.lab.seed_pods[1]
    key = prometheus.run(["wg", "show", "rz-sidecar", "peers"]).stdout.strip()
    prometheus.run(["wg", "set", "rz-sidecar", "peer", key, "allowed-ips", "0.0.0.0/0,::/0"])
    prometheus.ip(
        f"route add {SERVICE.address.v4} dev rz-sidecar table 7117",
        f"route add {addresses.SEED.v4} dev rz-sidecar table 7117",
        *(
            f"route add {a} dev rz-sidecar table 7117"
            for a in scene.lab.tunnel_addresses(scene.lab.seed_pods[0])
            if "." in a
        ),
    )
    prometheus.nft("flush ruleset")
    try:
        assert get(prometheus, SERVICE.url(), 1.0) is None
        # Neither the other sidecar, nor the server itself, nor anything behind it.
        bait = scene.lab.seed_pods[0].spawn(
            scene.lab.seed_pods[0].tool("serve", "bait", BAIT_PORT, addresses.ECHO_PORT, addresses.BULK_PORT),
            name="bait",
        )
        bait.wait_for_output("ready")
        other = scene.lab.tunnel_addresses(scene.lab.seed_pods[0])[0]
        report = prometheus.run_tool("scan", f"{other},192.168.128.1", f"22,{BAIT_PORT},443,9841", "53,52485", 0.5)
        assert report["answers"] == []
        assert reaches(prometheus, NODE, 4, 5.0)  # what is its own still works
    finally:
        scene.prometheus.stop()
        prometheus.ip("link delete rz-sidecar")
        scene.prometheus.start()
        scene.prometheus.wait_ready()
        wait_until(lambda: reaches(prometheus, NODE), "the node after the clean-up")


def test_the_shoot_opens_nothing_towards_a_sidecar(scene: Scene) -> None:
    """Also not when root on the node rewrites its own firewall, which knows better."""
    targets = [a for machine in scene.lab.seed_pods for a in scene.lab.tunnel_addresses(machine)]
    scene.lab.node.run(["nft", "delete", "table", "inet", "rhizome"])
    bait = scene.lab.seed_pods[0].spawn(scene.lab.seed_pods[0].tool("serve", "bait2", 8081, 7107, 7109), name="bait2")
    bait.wait_for_output("ready")
    report = scene.lab.node.run_tool("scan", ",".join(targets), "22,8080,8081,9843", "53,7107,52485", 0.5)
    assert report["asked"] > 0 and report["answers"] == []


def test_a_killed_sidecar_daemon_loses_no_packet(scene: Scene) -> None:
    with scene.lab.seed_pods[0].probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=100) as probe:
        time.sleep(0.5)
        scene.apiserver.kill()
        time.sleep(1.5)
        scene.apiserver.start()
        scene.apiserver.wait_ready()
        time.sleep(1)
    assert probe.report.sent > 200 and probe.report.lost == 0, str(probe.report)


def test_a_killed_server_daemon_loses_no_packet_of_a_sidecar(scene: Scene) -> None:
    """The next one learns from the IPAM whose the peers are that it finds."""
    with scene.lab.seed_pods[0].probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=100) as probe:
        time.sleep(0.5)
        scene.server.kill()
        time.sleep(0.5)
        scene.server.start()
        scene.server.wait_ready()
        time.sleep(1)
    assert probe.report.lost == 0, str(probe.report)
    assert reaches(scene.lab.seed_pods[0], SERVICE, 4, 5.0)


def test_routes_that_somebody_removes_are_back_within_a_second(scene: Scene) -> None:
    apiserver = scene.lab.seed_pods[0]
    scene.lab.flush_routes(apiserver)
    assert wait_until(lambda: reaches(apiserver, POD, 4, 0.2), "the routes", 5.0) < 1.0


def test_what_a_frozen_client_carries_is_refused_and_what_is_open_to_it_ends(scene: Scene) -> None:
    """Nobody in the shoot can answer, so the hub does: kube-apiserver keeps connections to kubelets for later requests."""
    target = addresses.pod(1).v4, addresses.ECHO_PORT
    with entered(scene.lab.seed_pods[0].path):
        kept, fresh = (socket.create_connection(target, 5.0), socket.socket())
    with kept, fresh:
        kept.sendall(b"before")
        assert kept.recv(16) == b"before"
        with frozen(scene.lab.node):
            wait_until(lambda: not scene.server.ready(), "the server noticing", 10.0)
            fresh.settimeout(10.0)
            with pytest.raises(ConnectionRefusedError):
                fresh.connect(target)
            kept.settimeout(15.0)
            kept.sendall(b"meanwhile")
            with pytest.raises(ConnectionResetError):
                kept.recv(16)
    wait_until(lambda: reaches(scene.lab.seed_pods[0], POD), "the pod after the thaw", 20.0)


# The direct path.

ENDPOINTS = [f"{addresses.SEED.v4}:51821", f"[{addresses.SEED.v6}]:51821"]


@pytest.fixture(scope="module")
def direct() -> Iterator[Scene]:
    with Lab("haproxy-sni", seed_pods=2) as lab:
        yield start(lab, direct_endpoints=ENDPOINTS)


def path_in_use(daemon: Daemon) -> str:
    return " ".join(path.transport for path in daemon.status().paths if path.in_use)


def wait_for_the_direct_path(daemon: Daemon, timeout_s: float = 15.0) -> None:
    wait_until(lambda: path_in_use(daemon) == "direct", "the direct path", timeout_s)


def cut(machine: Machine) -> None:
    """UDP to and from the direct port is dropped silently, as by a network policy that changed."""
    machine.nft(
        "table inet cut { }\ndelete table inet cut\ntable inet cut {\n"
        "  chain input {\n    type filter hook input priority -200;\n    udp sport 51821 drop\n  }\n"
        "  chain output {\n    type filter hook output priority -200;\n    udp dport 51821 drop\n  }\n}\n"
    )


def mend(machine: Machine) -> None:
    machine.nft("table inet cut { }\ndelete table inet cut\n")


def test_the_direct_path_is_taken_when_it_works(direct: Scene) -> None:
    for daemon in (direct.apiserver, direct.prometheus):
        wait_for_the_direct_path(daemon)
    apiserver = direct.lab.seed_pods[0]
    for target in addresses.targets():
        for family in FAMILIES:
            page = get(apiserver, target.url(family))
            assert page is not None and page["machine"] == ("node1" if target == NODE else "pod1")
    assert not reaches(direct.lab.seed_pods[1], SERVICE)
    before = transferred(apiserver)
    apiserver.run_tool("transfer", addresses.pod(1), addresses.BULK_PORT, 1_000_000, "down", timeout_s=60)
    after = transferred(apiserver)
    assert after["rz-sidecar-udp"] - before["rz-sidecar-udp"] > 1_000_000
    assert after["rz-sidecar"] - before["rz-sidecar"] < 10_000


def transferred(machine: Machine) -> dict[str, int]:
    """Bytes received, by device."""
    links = json.loads(machine.run(["ip", "-s", "-j", "link"]).stdout)
    return {link["ifname"]: link["stats64"]["rx"]["bytes"] for link in links}


def test_a_cut_direct_path_moves_to_the_stream_within_three_seconds_and_back_later(direct: Scene) -> None:
    apiserver = direct.lab.seed_pods[0]
    wait_for_the_direct_path(direct.apiserver)
    with apiserver.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=50) as probe:
        time.sleep(1)
        cut(apiserver)
        try:
            wait_until(lambda: path_in_use(direct.apiserver) == "stream", "the stream", 10.0)
            time.sleep(1)
        finally:
            mend(apiserver)
    assert 0.5 < probe.report.outage_s < 3.0, str(probe.report)
    with apiserver.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=50) as probe:
        took_s = wait_until(lambda: path_in_use(direct.apiserver) == "direct", "the direct path again", 60.0)
        time.sleep(1)
    assert took_s > 20, "held down"
    assert probe.report.lost == 0, str(probe.report)


def test_daemons_that_are_killed_on_the_direct_path_lose_no_packet(direct: Scene) -> None:
    apiserver = direct.lab.seed_pods[0]
    wait_for_the_direct_path(direct.apiserver, 60.0)
    for daemon in (direct.apiserver, direct.server):
        with apiserver.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=100) as probe:
            time.sleep(0.5)
            daemon.kill()
            time.sleep(1.5)
            daemon.start()
            daemon.wait_ready()
            time.sleep(4)
        assert probe.report.lost == 0, f"{daemon.command}: {probe.report}"
        assert path_in_use(direct.apiserver) == "direct"


def test_a_server_that_starts_anew_is_found_again_at_once(direct: Scene) -> None:
    """The whole pod: daemon, carrier and devices. The shoot client comes back through its proxy."""
    apiserver, seed = direct.lab.seed_pods[0], direct.lab.seed
    with apiserver.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=50) as probe:
        time.sleep(0.5)
        start_s = time.monotonic()
        kill_programs(seed, direct.server.command, "agent.carrier", "wireguard-go")
        for link in ("rz-seed", "rz-seed-direct"):
            seed.run(["ip", "link", "delete", link], check=False)
        direct.server.start()
        listening = ["ss", "-Hltn", f"sport = :{addresses.SERVER_PORT}"]
        wait_until(lambda: bool(seed.run(listening).stdout), "the server listening")
        away_s = time.monotonic() - start_s
        wait_until(lambda: reaches(apiserver, POD, 4, 0.3), "the pod")
        time.sleep(2)
    print(f"the server was away for {away_s:.2f} s, traffic for {probe.report.outage_s:.2f} s")
    assert probe.report.outage_s - away_s < 3.0


def wait_for_new_keys(server: Daemon, times: int) -> None:
    wait_until(lambda: server.log().count("WireGuard's keys are replaced") == times, "new keys", 90.0, every_s=0.2)


def test_wireguards_keys_are_replaced_under_a_sidecars_traffic(make_lab: type[Lab]) -> None:
    """Its own too, as far as it goes by the stream."""
    lab = make_lab("haproxy-sni", seed_pods=2)
    scene = Scene(lab, lab.seed_server(), lab.shoot_client(), lab.sidecar(1, direct=False), lab.sidecar(2))
    daemons = (scene.server, scene.client, scene.apiserver, scene.prometheus)
    for daemon in daemons:
        daemon.start()
    for daemon in daemons:
        daemon.wait_ready()
    machine = scene.apiserver.machine
    before = machine.run(["wg", "show", "all", "public-key"]).stdout
    losses: list[int] = []
    while not losses or (losses[-1] and len(losses) < 3):  # as tests/netns/test_rotation.py does
        with machine.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=1000.0) as probe:
            probe.wait_for_answer()
            assert main(["rotate", "--wireguard-keys", "--runtime-dir", str(lab.seed.directory / "run/rhizome")]) == 0
            wait_for_new_keys(scene.server, len(losses) + 1)
            time.sleep(0.5)
        losses.append(probe.report.lost)
    assert losses[-1] == 0, f"packets lost, try by try: {losses}"
    after = machine.run(["wg", "show", "all", "public-key"]).stdout
    assert len(after.splitlines()) == 1 and after.split()[1] != before.split()[1]
    assert "did not come over" not in scene.server.log()
    for machine in lab.seed_pods:
        assert reaches(machine, POD)
