"""Every secret is replaced under traffic, 1,000 packets a second through a real Envoy, and no packet is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from agent import renewal
from agent.__main__ import main
from agent.status import ASKED_KEYS_SUFFIX
from lab import addresses
from lab.daemons import Daemon
from lab.faults import FAULTS, Scene, suffer
from lab.lab import Lab
from lab.processes import wait_until
from seed_server.succession import OVERLAP_S

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
    told = [
        daemon.machine.run(["wg", "show", device(daemon), "preshared-keys"]).stdout.split()
        for daemon in (scene.server, scene.client)
    ]
    (_, seed), (_, shoot) = told
    return seed, shoot


def devices(daemon: Daemon) -> dict[str, str]:
    """Names and public keys."""
    lines = daemon.machine.run(["wg", "show", "all", "public-key"]).stdout.splitlines()
    return dict(map(str.split, lines))


def device(daemon: Daemon) -> str:
    (name,) = devices(daemon)
    return name


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
    machine, ifname = scene.client.machine, device(scene.client)
    (peer, *_), *_ = [line.split() for line in machine.run(["wg", "show", ifname, "peers"]).stdout.splitlines()]
    machine.run(["wg", "set", ifname, "peer", peer, "remove"])
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


# WireGuard's own keys


def keys(scene: Scene) -> set[str]:
    return {key for daemon in (scene.server, scene.client) for key in devices(daemon).values()}


def order(scene: Scene) -> None:
    runtime = scene.server.machine.directory / "run" / "rhizome"
    assert main(["rotate", "--wireguard-keys", "--runtime-dir", str(runtime)]) == 0


def running(daemon: Daemon) -> bool:
    return bool(daemon.status().rotation)


def left_over(daemon: Daemon) -> list[str]:
    """Of the devices that are not in use: routes, carriers, mentions in the firewall."""
    machine, ifname = daemon.machine, device(daemon)
    routes = [machine.run(["ip", f"-{v}", "route", "show", "table", "7117"]).stdout for v in (4, 6)]
    found = [line for text in routes for line in text.splitlines() if f" dev {ifname} " not in line]
    found += [p.name for p in (machine.directory / "run" / "rhizome").glob("*-b.carrier") if not ifname.endswith("-b")]
    other = ifname.removesuffix("-b") if ifname.endswith("-b") else f"{ifname}-b"
    return found + [
        line for line in machine.run(["nft", "list", "ruleset"]).stdout.splitlines() if f'"{other}"' in line
    ]


def wait_until_tidy(daemon: Daemon, timeout_s: float = 10) -> None:
    wait_until(lambda: not left_over(daemon), "nothing of the old devices", timeout_s, every_s=0.2)


def replaced(scene: Scene, before: set[str], timeout_s: float = 90) -> None:
    """Both ends have other keys, and nothing is left of the old ones."""

    def done() -> bool:
        ends = [devices(daemon) for daemon in (scene.server, scene.client)]
        return all(len(end) == 1 for end in ends) and before.isdisjoint(key for end in ends for key in end.values())

    wait_until(done, "new keys at both ends, and one device", timeout_s, every_s=0.2)
    for daemon in (scene.server, scene.client):
        wait_until_tidy(daemon)


def strict(scene: Scene, value: int) -> None:
    for daemon in (scene.server, scene.client):
        for name in ("all", "default"):
            daemon.machine.sysctl(**{f"net__ipv4__conf__{name}__rp_filter": value})


@pytest.mark.parametrize("rp_filter", [0, 1])
def test_wireguards_keys_by_command(scene: Scene, rp_filter: int) -> None:
    """There and back again: the second rotation takes the first names. Strict reverse path filtering does not mind."""
    strict(scene, rp_filter)

    def rotate() -> None:
        before = keys(scene)
        order(scene)
        replaced(scene, before)

    lossless(scene, rotate)
    assert dict(scene.server.status().counters.rotations).get("done")
    assert not running(scene.server) and not running(scene.client)
    strict(scene, 0)


@pytest.mark.parametrize("victim", ["server", "client"])
def test_a_daemon_that_is_killed_in_the_middle_goes_on(scene: Scene, victim: str) -> None:
    daemon: Daemon = getattr(scene, victim)

    def rotate() -> None:
        before = keys(scene)
        order(scene)
        wait_until(lambda: len(devices(scene.client)) == 2, "a second device at the client", 30, every_s=0.05)
        daemon.kill()
        daemon.process.wait()
        daemon.start()
        replaced(scene, before)

    lossless(scene, rotate)


@pytest.mark.parametrize("fault", ["proxy_restart", "silent_path", "server_carrier_killed"])
def test_a_rotation_goes_on_after_a_fault_in_the_middle(scene: Scene, fault: str) -> None:
    """Both streams are lost, one of which nobody has heard of yet; keys end up new, and nothing is left over."""
    before = keys(scene)
    order(scene)
    wait_until(lambda: len(devices(scene.client)) == 2, "a second device at the client", 30, every_s=0.05)
    suffer(scene, next(each for each in FAULTS if each.name == fault))
    replaced(scene, before)
    wait_until(scene.reaches_the_pod, "traffic afterwards", 30)


def test_wireguards_keys_by_age(scene: Scene) -> None:
    before = keys(scene)
    scene.server.settings["wireguard_key_lifetime_s"] = 1
    scene.server.stop()
    scene.server.start()
    replaced_once = scene.server.log().count("WireGuard's keys are replaced")
    wait_until(lambda: scene.server.log().count("WireGuard's keys are replaced") > replaced_once, "a rotation", 60)
    scene.server.settings["wireguard_key_lifetime_s"] = 0
    scene.server.stop()
    scene.server.start()
    scene.server.wait_ready()
    replaced(scene, before)
    assert not (scene.server.machine.directory / "run" / "rhizome" / f"rz-seed{ASKED_KEYS_SUFFIX}").exists()
    wait_until(scene.reaches_the_pod, "traffic afterwards")


def anew(client: Daemon) -> None:
    """One that has given up would try again in five minutes."""
    client.stop()
    client.start()
    client.wait_ready()


def broken(scene: Scene) -> None:
    """Nothing that comes out of the client's next device arrives."""
    machine = scene.client.machine
    (new,) = {"rz-shoot", "rz-shoot-b"} - devices(scene.client).keys()
    machine.run(["nft", "add", "table", "inet", "broken"])
    machine.run(["nft", "add", "chain", "inet", "broken", "in", "{ type filter hook prerouting priority -400; }"])
    machine.run(["nft", "add", "rule", "inet", "broken", "in", "iifname", new, "drop"])


def fail(scene: Scene) -> None:
    """A rotation that the client tries and gives up."""
    names = devices(scene.client).keys()
    if running(scene.server):
        anew(scene.client)
    else:
        order(scene)
    wait_until(lambda: len(devices(scene.client)) == 2, "a second device at the client", 30, every_s=0.05)
    wait_until(lambda: devices(scene.client).keys() == names, "the second device going again", 60, every_s=0.2)


def test_a_client_whose_new_keys_do_not_work_stays_on_the_old_ones(scene: Scene) -> None:
    """And comes over when they do."""
    machine, before = scene.client.machine, keys(scene)
    broken(scene)
    lossless(scene, lambda: fail(scene))
    assert dict(scene.client.status().counters.rotations)["failed"]
    assert "old ones stay in use" in scene.client.status().rotation and running(scene.server)
    assert scene.client.ready() and scene.server.ready()
    machine.run(["nft", "delete", "table", "inet", "broken"])
    anew(scene.client)
    replaced(scene, before)
    wait_until(scene.reaches_the_pod, "traffic afterwards")


def test_a_client_that_does_not_come_over_for_an_hour_has_to_connect_anew(scene: Scene) -> None:
    """The hour is over for a server that starts, and reads in its devices when they were made."""
    broken(scene)
    fail(scene)
    server, own = scene.server, devices(scene.client)
    server.kill()
    server.process.wait()
    for ifname, alias in aliases(server):
        *words, epoch = alias.split()
        long_ago = f"{int(epoch[:8], 16) - int(1.5 * OVERLAP_S):08x}{epoch[8:]}"
        server.machine.run(["ip", "link", "set", "dev", ifname, "alias", " ".join([*words, long_ago])])
    server.start()
    wait_until(lambda: len(devices(server)) == 1, "the end of the old device", 60, every_s=0.2)
    assert dict(server.status().counters.rotations) == {"forced": 1}
    assert "did not come over in time, and had to connect anew" in server.log()
    wait_until(scene.reaches_the_pod, "traffic afterwards", 60)
    assert devices(scene.client) == own, "it keeps its own key, which nobody knows"
    scene.client.machine.run(["nft", "delete", "table", "inet", "broken"])
    for daemon in (scene.server, scene.client):
        wait_until_tidy(daemon, 30)


def aliases(daemon: Daemon) -> list[tuple[str, str]]:
    """Of its devices: the epoch in them begins with when they were made."""
    links = json.loads(daemon.machine.run(["ip", "-j", "link"]).stdout)
    return [(link["ifname"], link["ifalias"]) for link in links if "rhizome" in link.get("ifalias", "")]
