"""Sidecars on the kernel's WireGuard: with a daemon, by both paths, and without one (`--once`).

Runs only inside the virtual machine (tests/kernel/test_in_vm.py names it).
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import addresses
from lab.daemons import Daemon, program
from lab.faults import kill_programs
from lab.lab import Lab
from lab.namespaces import Machine
from lab.processes import pids_in_network_namespace, wait_until

PATIENCE_S = 40.0  # and what RHIZOME_LAB_PATIENCE makes of it
SILENCE_S = 240  # the shortest that the server takes
NODE, POD, SERVICE = addresses.targets()
ENDPOINTS = [f"{addresses.SEED.v4}:51821", f"[{addresses.SEED.v6}]:51821"]
RANGES = ["kube-apiserver-*=all", "prometheus=nodes"]
NAMES = ("kube-apiserver-0", "prometheus")
#: UDP from the direct port is dropped silently, as by a network policy.
CUT = """
table inet cut {
  chain input {
    type filter hook input priority -200;
    udp sport 51821 drop
  }
}
"""
MENDED = "delete table inet cut\n"


@dataclass(frozen=True, slots=True)
class Scene:
    lab: Lab
    server: Daemon
    client: Daemon
    sidecars: tuple[Daemon, ...]

    def listening(self) -> bool:
        return bool(self.lab.seed.run(["ss", "-Hltn", f"sport = :{addresses.SERVER_PORT}"]).stdout)

    def peers(self) -> set[str]:
        return set(self.lab.seed.run(["wg", "show", "rz-seed-direct", "peers"], check=False).stdout.split())


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("none", seed_pods=len(NAMES)) as lab:
        secret = lab.directory / "direct.key"
        secret.write_text(secrets.token_hex(32))
        secret.chmod(0o600)
        server = lab.seed_server(
            sidecar_ranges=RANGES,
            direct_endpoints=ENDPOINTS,
            direct_secret=str(secret),
            once_file=str(lab.directory / "once.json"),
            once_silence_s=SILENCE_S,
        )
        sidecars = tuple(lab.sidecar(index, name) for index, name in enumerate(NAMES, start=1))
        scene = Scene(lab, server, lab.shoot_client(), sidecars)
        scene.server.start()
        wait_until(scene.listening, "the server listening", PATIENCE_S, 2.0)
        scene.client.start()
        scene.client.wait_ready(PATIENCE_S)
        scene.server.wait_ready(PATIENCE_S)
        yield scene


def reaches(machine: Machine, target: addresses.Target, patience_s: float = 4.0) -> bool:
    return machine.run(["curl", "-gsS", f"-m{patience_s}", target.url()], check=False).returncode == 0


def path_in_use(daemon: Daemon) -> str:
    return " ".join(path.transport for path in daemon.status().paths if path.in_use)


# With a daemon


def test_a_sidecar_takes_the_direct_path_and_falls_back_to_the_stream(scene: Scene) -> None:
    pod, sidecar = scene.lab.seed_pods[0], scene.sidecars[0]
    sidecar.start()
    try:
        sidecar.wait_ready(PATIENCE_S)
        assert sidecar.status().backend == "kernel"
        wait_until(lambda: path_in_use(sidecar) == "direct", "the direct path", PATIENCE_S, 0.5)
        for target in addresses.targets():
            assert reaches(pod, target)
        pod.nft(CUT)
        wait_until(lambda: path_in_use(sidecar) == "stream", "the stream", PATIENCE_S, 0.5)
        wait_until(lambda: reaches(pod, POD), "the pod by the stream", PATIENCE_S)
        for target in addresses.targets():
            assert reaches(pod, target)
        pod.nft(MENDED)
        wait_until(lambda: path_in_use(sidecar) == "direct", "the direct path again", 60.0, 0.5)
        assert reaches(pod, POD)
    finally:
        sidecar.stop()
        pod.run([program("rhizome-agent"), "cleanup"])


# Without one


def once(scene: Scene, index: int, timeout_s: int = 200) -> subprocess.CompletedProcess[str]:
    sidecar = scene.sidecars[index - 1]
    sidecar.write()
    start = time.monotonic()
    argv = sidecar.argv("--once", "--once-timeout-s", str(timeout_s))
    done = scene.lab.seed_pods[index - 1].run(argv, check=False, timeout_s=300)
    print(f"{NAMES[index - 1]}: exit code {done.returncode} after {time.monotonic() - start:.1f} s")
    return done


def ours(machine: Machine) -> list[str]:
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids_in_network_namespace(machine.path)]
    return [line for line in lines if "rhizome" in line or "agent." in line or "wireguard" in line]


def test_without_the_direct_path_it_fails_in_words_and_leaves_nothing(scene: Scene) -> None:
    pod = scene.lab.seed_pods[1]
    pod.nft(CUT)
    done = once(scene, 2, timeout_s=40)
    pod.nft(MENDED)
    assert done.returncode == 1 and "no canary comes by UDP" in done.stderr, done.stderr
    links = json.loads(pod.run(["ip", "-j", "link"]).stdout)
    assert not [link["ifname"] for link in links if link["ifname"].startswith("rz-")]
    assert ours(pod) == [] and "rhizome" not in pod.run(["nft", "list", "tables"]).stdout


def test_they_set_their_pods_up_and_leave_nothing_running(scene: Scene) -> None:
    seen: set[str] = set()
    for index, pod in enumerate(scene.lab.seed_pods, start=1):
        done = once(scene, index)
        assert done.returncode == 0, done.stderr
        assert ours(pod) == []
        own = scene.lab.tunnel_addresses(pod)
        assert len(own) == 2 and not seen & set(own), "an address of its own"
        seen |= set(own)
        assert reaches(pod, NODE)
        assert reaches(pod, POD) == reaches(pod, SERVICE) == (index == 1), NAMES[index - 1]
    assert len(scene.peers()) == 2


def test_a_server_that_starts_anew_still_knows_them(scene: Scene) -> None:
    """The whole pod: daemon, carrier and devices. Nobody tells those who left; WireGuard finds the same key again."""
    seed, pod = scene.lab.seed, scene.lab.seed_pods[0]
    key = seed.run(["wg", "show", "rz-seed-direct", "public-key"]).stdout
    kill_programs(seed, scene.server.command, "agent.carrier")
    for link in ("rz-seed", "rz-seed-direct"):
        seed.run(["ip", "link", "delete", link], check=False)
    scene.server.start()
    wait_until(scene.listening, "the server listening", PATIENCE_S, 2.0)
    scene.server.wait_ready(PATIENCE_S)
    back_s = wait_until(lambda: reaches(pod, POD), "the pod after the server's restart", PATIENCE_S)
    print(f"back {back_s:.1f} s after the server was ready")
    assert seed.run(["wg", "show", "rz-seed-direct", "public-key"]).stdout == key
    assert len(scene.peers()) == 2


def test_who_left_has_its_own_ranges_whatever_its_pod_says(scene: Scene) -> None:
    """Also after the server's restart. Root in the pod sends everything into the tunnel, and removes the rules there."""
    pod = scene.lab.seed_pods[1]
    key = pod.run(["wg", "show", "rz-sidecar-udp", "peers"]).stdout.strip()
    pod.run(["wg", "set", "rz-sidecar-udp", "peer", key, "allowed-ips", "0.0.0.0/0,::/0"])
    other = next(a for a in scene.lab.tunnel_addresses(scene.lab.seed_pods[0]) if "." in a)
    for address in (SERVICE.address.v4, POD.address.v4, other, "192.168.128.1", "192.168.128.2"):
        pod.ip(f"route replace {address} dev rz-sidecar-udp table 7117")
    pod.nft("flush ruleset")
    wait_until(lambda: reaches(pod, NODE), "what is its own", PATIENCE_S)
    assert not reaches(pod, SERVICE, 1.0) and not reaches(pod, POD, 1.0)
    report = pod.run_tool("scan", f"{other},192.168.128.1,192.168.128.2", "22,443,9841", "53,52485", 0.5)
    assert report["answers"] == []
