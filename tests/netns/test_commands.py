"""The commands that people type beside a running tunnel, also at the wrong moment: status, doctor, plan, cleanup."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest

from agent.checks import CLIENT, SEED_SERVER
from agent.exits import Exit
from lab.daemons import Daemon, program
from lab.faults import Scene, kill_programs
from lab.freeze import frozen
from lab.lab import Lab
from lab.namespaces import Machine
from lab.processes import wait_until

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("none") as lab:
        yield Scene.start(lab)


def agent(machine: Machine, *words: str) -> CompletedProcess[str]:
    return machine.run([program("rhizome-agent"), *words], check=False)


def plan(daemon: Daemon) -> CompletedProcess[str]:
    return daemon.machine.run([program(daemon.command), "plan", "--config", str(daemon.config)], check=False)


def test_status_says_the_verdict_first_and_is_plain_where_nobody_looks(scene: Scene) -> None:
    for machine, role in ((scene.lab.seed, "seed-server"), (scene.lab.node, "shoot-client")):
        done = agent(machine, "status")
        assert done.returncode == Exit.OK
        assert done.stdout.splitlines()[0].startswith(f"UP  {role} ")
        assert "\x1b" not in done.stdout
        (read,) = json.loads(agent(machine, "status", "-o", "json").stdout)
        assert read["verdict"] == "UP" and read["backend"] in ("kernel", "userspace")


def test_a_plan_on_a_running_host_changes_nothing_and_finds_nothing(scene: Scene) -> None:
    for daemon in (scene.server, scene.client):
        done = plan(daemon)
        assert (done.returncode, "nothing to change" in done.stdout) == (Exit.OK, True), done.stdout + done.stderr
    assert scene.reaches_the_pod()


def test_the_doctor_finds_nothing_where_all_is_well(scene: Scene) -> None:
    for machine, checks in ((scene.lab.seed, SEED_SERVER), (scene.lab.node, CLIENT)):
        done = agent(machine, "doctor")
        assert done.returncode == Exit.OK, done.stdout
        assert done.stdout.splitlines()[0].endswith(f": all {len(checks)} checks pass"), done.stdout
        (read,) = json.loads(agent(machine, "doctor", "-o", "json", "--seconds", "0.1").stdout)
        seen = {finding["id"]: finding["seen"] for finding in read["findings"]}
        (fds,) = (words for id, words in seen.items() if id.endswith("DescriptorsHigh"))
        (certificate,) = (words for id, words in seen.items() if id.endswith("CertificateExpiring"))
        assert int(fds.split()[0]) > 3 and certificate.startswith("the certificate ends in")


def failing(machine: Machine) -> dict[str, str]:
    """What the doctor finds bad: id and what it has seen. The command itself has to fail with it."""
    done = agent(machine, "doctor", "-o", "json", "--seconds", "0.5")
    (read,) = json.loads(done.stdout)
    bad = {finding["id"]: finding["seen"] for finding in read["findings"] if finding["outcome"] == "bad"}
    assert done.returncode == (Exit.FAILED if bad else Exit.OK)
    return bad


def test_the_doctor_on_the_server_names_the_client_that_hangs(scene: Scene) -> None:
    with frozen(scene.lab.node):
        wait_until(lambda: "RhizomeTunnelDown" in failing(scene.lab.seed), "the doctor seeing it")
        found = failing(scene.lab.seed)
        assert "1 of 1 without an answer: node" in found["RhizomeCanaryFailing"], found
        shown = agent(scene.lab.seed, "doctor", "--seconds", "0.5").stdout
        assert "runbook  docs/runbooks/RhizomeTunnelDown.md" in shown
        hangs = agent(scene.lab.node, "doctor")
        assert hangs.returncode == Exit.FAILED and "cannot be examined: the daemon does not answer" in hangs.stdout
    wait_until(lambda: not failing(scene.lab.seed), "the doctor seeing that it is well again")


def test_the_doctor_on_a_node_finds_that_nothing_crosses(scene: Scene) -> None:
    scene.client.wait_ready()
    with frozen(scene.lab.seed):
        wait_until(lambda: "RhizomeNodeTunnelDown" in failing(scene.lab.node), "the doctor seeing it")
        assert "no packet crosses the tunnel" in failing(scene.lab.node)["RhizomeNodeTunnelDown"]
    wait_until(lambda: not failing(scene.lab.node), "the doctor seeing that it is well again")


def test_status_names_the_cause_when_the_way_is_gone(scene: Scene) -> None:
    kill_programs(scene.lab.seed, "rhizome-seed-server", "agent.carrier")
    wait_until(lambda: agent(scene.lab.node, "status").returncode == Exit.FAILED, "the client noticing")
    first = agent(scene.lab.node, "status").stdout.splitlines()[0]
    assert first.startswith("DOWN") and "refused" in first, first
    seed = agent(scene.lab.seed, "status")
    assert seed.returncode == Exit.FAILED and "not running" in seed.stdout
    scene.server.start()
    scene.client.wait_ready()


def leftovers(machine: Machine) -> str:
    commands = (
        ["ip", "-j", "link"],
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all", "proto", "84"],
        ["nft", "list", "tables"],
    )
    return "\n".join(machine.run(command).stdout for command in commands)


def test_cleanup_waits_for_the_daemon_and_then_leaves_nothing_of_ours(scene: Scene) -> None:
    machine = scene.lab.seed
    refused = agent(machine, "cleanup")
    assert refused.returncode == Exit.FAILED and "stop it first" in refused.stderr
    scene.server.stop()
    assert scene.reaches_the_pod(), "a daemon that is stopped leaves the tunnel"
    assert plan(scene.server).returncode == Exit.OK
    machine.ip("route add 10.99.0.0/16 dev eth0 proto static")
    shown = agent(machine, "cleanup", "--dry-run")
    assert shown.stdout.startswith("would do:") and "ip link del rz-seed" in shown.stdout
    assert scene.reaches_the_pod()
    done = agent(machine, "cleanup")
    assert done.returncode == Exit.OK and done.stdout.startswith("done:"), done.stdout + done.stderr
    rest = leftovers(machine)
    assert "rz-seed" not in rest and "7117" not in rest and "rhizome" not in rest and "proto 84" not in rest
    assert "10.99.0.0/16" in machine.run(["ip", "route"]).stdout
    assert kill_programs(machine, "agent.carrier", "wireguard-go") == 0
    assert agent(machine, "cleanup").stdout == "nothing of Rhizome's is here\n"
    planned = plan(scene.server)
    assert planned.returncode == Exit.CHANGES and "ip link add rz-seed" in planned.stdout


def test_wrong_settings_are_all_told_at_once_and_nothing_is_touched(scene: Scene) -> None:
    machine = scene.lab.seed
    words = ["--control-plane", "Not_A_Name", "--listen", "nowhere", "--wireguard-port", "70000", "--tls-ca", "/absent"]
    done = machine.run([program("rhizome-seed-server"), *words], check=False)
    assert done.returncode == Exit.USAGE
    for word in ("control_plane", "listen", "wireguard_port", "tls_ca", "tls_key", "node_networks"):
        assert word in done.stderr, done.stderr
    assert "rz-seed" not in leftovers(machine)
    captures = dict(scene.server.settings) | {"seed_networks": [], "pod_networks": ["10.10.0.0/16"]}
    scene.server.settings = captures
    scene.server.start()
    assert scene.server.process.wait(20) == Exit.USAGE
    assert "own address on eth0" in scene.server.log() and "rz-seed" not in leftovers(machine)


def test_without_the_right_to_manage_networks_it_says_so(scene: Scene) -> None:
    assert os.geteuid() == 0
    config = str(scene.client.config)
    done = scene.lab.pod.run(
        [
            "setpriv",
            "--bounding-set",
            "-net_admin",
            "--inh-caps",
            "-net_admin",
            program("rhizome-shoot-client"),
            "--config",
            config,
        ],
        check=False,
    )
    assert done.returncode == Exit.UNSUPPORTED and "CAP_NET_ADMIN" in done.stderr, done.stderr
