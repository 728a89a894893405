"""Several programs of one control plane at once: three kube-apiservers and a Prometheus, each with a sidecar of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from lab import addresses
from lab.daemons import Daemon
from lab.lab import Lab
from lab.namespaces import Machine
from lab.processes import wait_until

pytestmark = pytest.mark.netns

NODE, POD, SERVICE = addresses.targets()
NAMES = ("kube-apiserver-0", "kube-apiserver-1", "kube-apiserver-2", "prometheus")
RANGES = ["kube-apiserver-*=all", "prometheus=nodes"]


@dataclass(frozen=True, slots=True)
class Scene:
    lab: Lab
    server: Daemon
    sidecars: tuple[Daemon, ...]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("none", seed_pods=len(NAMES)) as lab:
        server = lab.seed_server(sidecar_ranges=RANGES, direct_endpoints=[f"{addresses.SEED.v4}:51821"])
        client = lab.shoot_client()
        sidecars = tuple(lab.sidecar(index, name) for index, name in enumerate(NAMES, start=1))
        daemons = (server, client, *sidecars)
        for daemon in daemons:
            daemon.start()
        for daemon in daemons:
            daemon.wait_ready(60.0)
        for daemon in sidecars:
            wait_for_the_direct_path(daemon)
        yield Scene(lab, server, sidecars)


def path_in_use(daemon: Daemon) -> str:
    return " ".join(path.transport for path in daemon.status().paths if path.in_use)


def wait_for_the_direct_path(daemon: Daemon) -> None:
    wait_until(lambda: path_in_use(daemon) == "direct", "the direct path", 30.0)


def reaches(machine: Machine, target: addresses.Target) -> bool:
    return machine.run(["curl", "-gsS", "-m2", target.url()], check=False).returncode == 0


def test_each_has_an_address_and_ranges_of_its_own(scene: Scene) -> None:
    own = [set(scene.lab.tunnel_addresses(machine)) for machine in scene.lab.seed_pods]  # on both devices
    assert [len(found) for found in own] == [2] * 4
    assert len({address for found in own for address in found}) == 8
    for pod, name in zip(scene.lab.seed_pods, NAMES, strict=True):
        assert reaches(pod, NODE), name
        assert reaches(pod, POD) == reaches(pod, SERVICE) == name.startswith("kube-apiserver"), name
    rows = {peer.name: peer for peer in scene.server.status().peers if peer.role == "sidecar"}
    assert set(rows) == set(NAMES) and {row.path for row in rows.values()} == {"direct UDP"}
    assert set(rows["prometheus"].reaches) == set(addresses.SHOOT_NODES)


def test_one_that_is_killed_disturbs_nobody(scene: Scene) -> None:
    """Not its own pod either; the device goes on, and the next daemon adopts it."""
    with ExitStack() as stack:
        probes = [
            stack.enter_context(pod.probe("udp", addresses.node(1).v4, addresses.ECHO_PORT, rate=20))
            for pod in scene.lab.seed_pods
        ]
        time.sleep(1)
        scene.sidecars[0].kill()
        time.sleep(2)
        scene.sidecars[0].start()
        scene.sidecars[0].wait_ready(60.0)
    for name, probe in zip(NAMES, probes, strict=True):
        assert probe.report.sent > 40 and probe.report.lost == 0, f"{name}: {probe.report}"


def test_one_that_leaves_takes_nothing_of_the_others_along(scene: Scene) -> None:
    before = [set(scene.lab.tunnel_addresses(pod)) for pod in scene.lab.seed_pods[1:]]
    scene.sidecars[0].stop()
    scene.lab.delete_device(scene.lab.seed_pods[0])
    for pod in scene.lab.seed_pods[1:]:
        assert reaches(pod, NODE)
    assert [set(scene.lab.tunnel_addresses(pod)) for pod in scene.lab.seed_pods[1:]] == before
    scene.sidecars[0].start()
    wait_until(lambda: reaches(scene.lab.seed_pods[0], SERVICE), "the one that left", 30.0)
