"""What a sidecar may do, and what it may not: to its own pod, to the server, and with another's certificate."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import addresses
from lab.daemons import Daemon, Pki, program
from lab.faults import Scene
from lab.lab import Lab
from lab.namespaces import Machine
from lab.processes import wait_until

pytestmark = pytest.mark.netns

CLIENT = Path(__file__).with_name("hostile_client.py")
NODE, POD, SERVICE = addresses.targets()
NET_ADMIN_ONLY = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", "--no-new-privs"]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("none", seed_pods=2) as lab:
        yield Scene.start(lab)


def reaches(machine: Machine, target: addresses.Target) -> bool:
    return machine.run(["curl", "-gsS", "-m0.5", target.url()], check=False).returncode == 0


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_it_needs_net_admin_and_nothing_else(scene: Scene) -> None:
    """In the network namespace of another program, as a container of its pod; the program has no rights at all."""
    pod = scene.lab.seed_pods[0]
    sidecar = scene.lab.sidecar(1)
    sidecar.write()
    process = pod.spawn([*NET_ADMIN_ONLY, *sidecar.argv()], name="sidecar-net-admin")
    sidecar._process = process
    try:
        sidecar.wait_ready()
        apiserver = [
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
            "--reuid=65534",
            "--clear-groups",
        ]
        for target in addresses.targets():
            assert json.loads(pod.run([*apiserver, "curl", "-gsS", "-m5", target.url()]).stdout)["machine"]
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapBnd:\t0000000000001000" in status and "CapEff:\t0000000000001000" in status
        used = resident_kib(process.pid)
        print(f"resident memory of the sidecar's daemon: {used / 1024:.1f} MiB")
        assert used < 64 * 1024
    finally:
        sidecar.stop()
        pod.run([program("rhizome-agent"), "cleanup"])


def test_a_route_that_would_capture_what_the_pod_needs_is_refused_alone(scene: Scene) -> None:
    pod = scene.lab.seed_pods[0]
    ours = f"{addresses.SERVICE.v4}/32"
    sidecar = scene.lab.sidecar(1, "guarded", protected_networks=[ours])
    sidecar.start()
    try:
        sidecar.wait_ready()
        assert reaches(pod, NODE) and reaches(pod, POD) and not reaches(pod, SERVICE)
        status = sidecar.status()
        assert status.verdict.value == "DEGRADED" and ours in status.sentence, status.sentence
        (peer,) = status.peers
        assert addresses.SHOOT_SERVICES[0] not in peer.reaches and addresses.SHOOT_SERVICES[1] in peer.reaches
        assert any(ours in text for text in peer.refused)
        assert sidecar.metrics()['rhizome_prefixes_refused_total{reason="captures"}'] == 1
        assert f"route {addresses.SHOOT_SERVICES[0]} refused: it would capture {ours}" in sidecar.log()
        # An address that the pod gets while the sidecar runs.
        pod.ip(f"address add {addresses.pod(9).v4}/32 dev eth0")
        wait_until(
            lambda: addresses.SHOOT_PODS[0] not in sidecar.status().peers[0].reaches, "the guard's second look", 20.0
        )
        pod.ip(f"address delete {addresses.pod(9).v4}/32 dev eth0")
        wait_until(lambda: reaches(pod, POD), "the route once it harms nobody", 20.0)
    finally:
        sidecar.stop()
        pod.run([program("rhizome-agent"), "cleanup"])


def test_ranges_change_while_sidecars_run(scene: Scene) -> None:
    """The server's daemon starts anew with other ranges; the sidecar is told, and its open connections are held to them too."""
    pod = scene.lab.seed_pods[0]
    sidecar = scene.lab.sidecar(1, "changing")
    sidecar.start()
    try:
        sidecar.wait_ready()
        assert reaches(pod, SERVICE) and reaches(pod, NODE)
        with (
            pod.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=50) as kept,
            pod.probe("udp", addresses.node(1).v4, addresses.ECHO_PORT, rate=50) as ended,
        ):
            time.sleep(0.5)
            restart_with(scene.server, ["*=pods"])
            wait_until(lambda: set(sidecar.status().peers[0].reaches) == set(addresses.SHOOT_PODS), "the news", 10.0)
            start_s = time.monotonic()
            wait_until(lambda: not routed(pod, addresses.SHOOT_SERVICES[0]), "the routes", 5.0, every_s=0.01)
            took_s = time.monotonic() - start_s
            time.sleep(2)
        print(f"routes followed the grant within {took_s * 1000:.0f} ms")
        assert took_s < 1.0
        assert kept.report.lost == 0, str(kept.report)
        assert ended.report.lost > 50, "a right that is taken away ends what was open by it"
        assert not reaches(pod, SERVICE) and reaches(pod, POD)
        restart_with(scene.server, ["*=all"])
        wait_until(lambda: reaches(pod, SERVICE), "the service again", 10.0)
    finally:
        sidecar.stop()
        pod.run([program("rhizome-agent"), "cleanup"])


def restart_with(server: Daemon, ranges: list[str]) -> None:
    server.stop()
    server.settings["sidecar_ranges"] = ranges
    server.start()


def routed(machine: Machine, prefix: str) -> bool:
    return prefix in machine.run(["ip", "route", "show", "table", "7117"]).stdout


def test_without_a_daemon_only_the_kernel_can_go_on(scene: Scene) -> None:
    """`--once` where WireGuard is a process: it says so, and leaves nothing. On the kernel: tests/kernel/inside_sidecar.py."""
    pod = scene.lab.seed_pods[0]
    sidecar = scene.lab.sidecar(1, "visitor", wireguard="userspace")
    sidecar.write()
    done = pod.run(sidecar.argv("--once"), check=False)
    assert done.returncode == 3 and "only the kernel's WireGuard goes on without a process" in done.stderr, done.stderr
    assert "rz-" not in pod.run(["ip", "-brief", "link"]).stdout


# Certificates.


def enrol(
    machine: Machine, scene: Scene, name: str, tls: dict[str, str], offer: dict[str, list[str]]
) -> dict[str, object] | None:
    """What the server answers to somebody who enrols with this certificate; None when there is no answer."""
    config = {
        "host": addresses.SEED.v4,
        "port": addresses.SERVER_PORT,
        "server_name": addresses.SERVER_NAME,
        "tls": tls,
        "wireguard_port": 51999,
    }
    command = [sys.executable, str(CLIENT), f"/run/{name}.carrier", json.dumps(config), json.dumps(offer)]
    done = machine.run(command, check=False, timeout_s=30)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


EVERYTHING = {
    "nodes": [f"{addresses.node(1).v4}/32", "0.0.0.0/0"],
    "pods": list(addresses.SHOOT_PODS),
    "services": list(addresses.SHOOT_SERVICES),
}


def as_dict(tls: object) -> dict[str, str]:
    return {name: getattr(tls, name) for name in ("ca", "certificate", "key")}


def test_a_sidecars_certificate_carries_nothing(scene: Scene) -> None:
    before = scene.lab.seed.run(["wg", "show", "rz-seed", "allowed-ips"]).stdout
    tls = as_dict(scene.lab.pki.sidecar("greedy"))
    answer = enrol(scene.lab.seed_pods[1], scene, "greedy", tls, EVERYTHING)
    assert answer is not None and answer["type"] == "grant" and answer["carries"] == []
    refused = answer["refused"]
    assert isinstance(refused, list) and len(refused) == sum(map(len, EVERYTHING.values()))
    after = scene.lab.seed.run(["wg", "show", "rz-seed", "allowed-ips"]).stdout
    greedy = next(line for line in after.splitlines() if line not in before.splitlines())
    assert len(greedy.split()) == 3, "a key and its two own addresses"


def test_a_shoot_clients_certificate_opens_nothing(scene: Scene) -> None:
    tls = as_dict(scene.lab.pki.client("curious"))
    answer = enrol(scene.lab.seed_pods[1], scene, "curious", tls, {"nodes": [], "pods": [], "services": []})
    assert answer is not None and answer["type"] == "grant" and answer["routes"] == [] and answer["direct"] is None
    table = scene.lab.seed.run(["nft", "list", "chain", "inet", "rhizome", "transit"]).stdout
    own = [str(a) for a in answer["addresses"]]  # type: ignore[attr-defined]
    assert not any(f"saddr {a} " in table for a in own)


def test_a_sidecar_of_another_control_plane_is_turned_away(scene: Scene, tmp_path: Path) -> None:
    tls = as_dict(Pki(tmp_path / "pki", "shoot--other").sidecar("stranger")) | {
        "ca": as_dict(scene.lab.pki.sidecar("x"))["ca"]
    }
    before = sum(dict(scene.server.status().counters.turned_away).values())
    assert enrol(scene.lab.seed_pods[1], scene, "stranger", tls, {}) is None
    wait_until(lambda: sum(dict(scene.server.status().counters.turned_away).values()) > before, "being turned away")


def test_what_a_revoked_sidecar_says_to_the_shoot_never_leaves_by_its_pods_own_way(
    make_lab: type[Lab],
) -> None:
    """Somebody else may have the shoot's addresses there. The way back is a new grant."""
    lab = make_lab("none", seed_pods=1)
    deny = lab.seed.directory / "deny.txt"
    deny.touch()
    server, client, sidecar = lab.seed_server(deny_file=str(deny)), lab.shoot_client(), lab.sidecar(1)
    for daemon in (server, client, sidecar):
        daemon.start()
    for daemon in (client, server, sidecar):
        daemon.wait_ready()
    (pod,) = lab.seed_pods
    wait_until(lambda: reaches(pod, POD), "the pod of the shoot")
    order = [program("rhizome-agent"), "revoke", "spiffe://shoot--demo/sidecar/seed-pod-1", "--deny-file", str(deny)]
    lab.seed.run(order)
    wait_until(lambda: "was revoked" in sidecar.status().sentence, "the sidecar saying why", 30)
    wait_until(lambda: not pod.run(["wg", "show", "rz-sidecar", "peers"]).stdout.strip(), "its peer being gone", 10)
    for target in addresses.targets():
        for address in (target.address.v4, target.address.v6):
            assert "dev rz-sidecar" in pod.run(["ip", "route", "get", address]).stdout
    assert not reaches(pod, POD)
    lab.seed.run([*order, "--undo"])
    wait_until(lambda: reaches(pod, POD), "the pod of the shoot again", 60)
