"""Every secret is replaced under traffic, 1,000 packets a second through a real Envoy, and no packet is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from agent import renewal
from agent.__main__ import main
from lab import addresses
from lab.faults import Scene
from lab.lab import Lab
from lab.processes import wait_until

pytestmark = pytest.mark.netns

RATE = 1000.0
#: A machine at full load drops packets of its own; a rotation that drops some does so each time.
TRIES = 3


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("envoy-sni") as lab:
        yield Scene.start(lab)


def lost(scene: Scene, act: Callable[[], None]) -> int:
    """How many packets to a pod and back are lost while this is done and a moment after."""
    wait_until(scene.reaches_the_pod, "traffic before")
    with scene.lab.seed.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=RATE) as probe:
        probe.wait_for_answer()
        act()
        time.sleep(0.5)
    assert probe.report.sent > 500
    return probe.report.lost


def lossless(scene: Scene, act: Callable[[], None]) -> None:
    losses: list[int] = []
    while not losses or (losses[-1] and len(losses) < TRIES):
        losses.append(lost(scene, act))
    assert losses[-1] == 0, f"packets lost, try by try: {losses}"


def streams(scene: Scene) -> int:
    """How many the server has seen since it was started."""
    return scene.server.log().count("stream up: ")


def with_a_new_stream(scene: Scene, act: Callable[[], object]) -> None:
    """Do it, and wait until the client has dialled again with the new files and the old stream has gone."""
    before = streams(scene)
    act()
    wait_until(lambda: streams(scene) > before, "the client dialling again", 30, every_s=0.1)
    time.sleep(2.5)  # so long may an old stream drain


def test_ca_server_and_client_certificates(scene: Scene) -> None:
    """Both CAs are trusted, then everybody has a certificate of the new one, then the old one is trusted no more: it takes all three
    for the last stream to come up."""
    directory = scene.lab.pki.directory

    def rotate() -> None:
        with_a_new_stream(scene, lambda: renewal.new_ca(directory))
        with_a_new_stream(scene, lambda: renewal.renew(directory))
        with_a_new_stream(scene, lambda: renewal.retire_ca(directory))

    lossless(scene, rotate)


def test_all_certificates_by_command(scene: Scene) -> None:
    lossless(scene, lambda: with_a_new_stream(scene, lambda: renewal.renew(scene.lab.pki.directory, everything=True)))


def preshared(scene: Scene) -> tuple[str, str]:
    """As the device of each end has it. `wg` speaks to kernel and user space alike."""
    ends = ((scene.server.machine, "rz-seed"), (scene.client.machine, "rz-shoot"))
    told = [machine.run(["wg", "show", ifname, "preshared-keys"]).stdout.split() for machine, ifname in ends]
    (_, seed), (_, shoot) = told
    return seed, shoot


def test_preshared_keys_by_command(scene: Scene) -> None:
    """And the next handshake, which has to begin with nothing, is one with the new keys."""

    def rotate() -> None:
        before = preshared(scene)
        runtime = scene.server.machine.directory / "run" / "rhizome"
        assert main(["rotate", "--runtime-dir", str(runtime)]) == 0
        wait_until(
            lambda: set(preshared(scene)).isdisjoint(before), "a new preshared key at both ends", 20, every_s=0.05
        )

    lossless(scene, rotate)
    seed, shoot = preshared(scene)
    assert seed == shoot
    (peer, *_), *_ = [
        line.split() for line in scene.client.machine.run(["wg", "show", "rz-shoot", "peers"]).stdout.splitlines()
    ]
    scene.client.machine.run(["wg", "set", "rz-shoot", "peer", peer, "remove"])
    assert not scene.reaches_the_pod()
    wait_until(scene.reaches_the_pod, "a handshake with the new preshared keys", 30, every_s=0.2)
    assert preshared(scene) == (seed, shoot)


def test_preshared_keys_by_age(scene: Scene) -> None:
    """10 s is the least that can be set."""
    scene.server.settings["psk_lifetime_s"] = 10
    scene.server.stop()
    scene.server.start()
    scene.server.wait_ready()
    before = preshared(scene)
    wait_until(lambda: set(preshared(scene)).isdisjoint(before), "new preshared keys", 60, every_s=0.5)
    assert len(set(preshared(scene))) == 1
    wait_until(scene.reaches_the_pod, "traffic afterwards")
