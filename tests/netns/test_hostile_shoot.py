"""The shoot is hostile: what it claims, and what it can reach of the seed.

A compromised node has root in its namespace and the real client's certificate; the seed must not care.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import addresses
from lab.faults import Scene, kill_programs
from lab.lab import Lab
from lab.processes import wait_until

pytestmark = pytest.mark.netns

CLIENT = Path(__file__).with_name("hostile_client.py")
SCANNED_TCP = "22,80,443,5432,6443,7007,8080,9841,10250"
SCANNED_UDP = "53,7007,51820,52485"


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("envoy-sni", nodes=2) as lab:
        scene = Scene.start(lab)
        # Something that would answer, on every address of the seed.
        bait = lab.seed.spawn(
            lab.seed.tool("serve", "seed", addresses.HTTP_PORT, addresses.ECHO_PORT, addresses.BULK_PORT), name="bait"
        )
        bait.wait_for_output("ready")
        yield scene


def seen_of_the_seed(scene: Scene) -> dict[str, str]:
    """All that a shoot could have changed there."""
    commands = {
        "routes": ["ip", "-j", "route", "show", "table", "all"],
        "routes6": ["ip", "-6", "-j", "route", "show", "table", "all"],
        "rules": ["ip", "-j", "rule"],
        "addresses": ["ip", "-j", "address"],
        "nft": ["nft", "-s", "list", "ruleset"],
    }
    seen = {name: scene.lab.seed.run(command).stdout for name, command in commands.items()}
    allowed = scene.lab.seed.run(["wg", "show", "rz-seed", "allowed-ips"]).stdout
    seen["allowed-ips"] = "\n".join(sorted(line for line in allowed.splitlines() if addresses.node(1).v4 in line))
    return seen


def claim(scene: Scene, name: str, nodes: list[str], pods: list[str], services: list[str]) -> dict[str, object]:
    """Enrol as `name` from node 2, claiming this; the server's answer."""
    tls = scene.lab.pki.client(name)
    config = {
        "host": addresses.SERVER_NAME,
        "port": addresses.SERVER_PORT,
        "server_name": addresses.SERVER_NAME,
        "tls": {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key},
        "wireguard_port": 51999,
    }
    offer = {"nodes": nodes, "pods": pods, "services": services}
    socket = f"/run/{name}.carrier"
    done = scene.lab.nodes[1].run(
        [sys.executable, str(CLIENT), socket, json.dumps(config), json.dumps(offer)], timeout_s=30
    )
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_client_that_claims_what_is_not_its_own_changes_nothing(scene: Scene) -> None:
    before = seen_of_the_seed(scene)
    counted = scene.server.metrics()
    claims = [
        "0.0.0.0/0",
        "::/0",
        addresses.SEED_PODS[0],
        addresses.SEED_PODS[1],
        "169.254.169.254/32",
        f"{addresses.node(1).v4}/32",
        "192.168.128.1/32",
        "192.168.128.8/32",
        "127.0.0.1/32",
    ]
    pods = [addresses.pod_network(1).v4, f"{addresses.pod(1).v4}/32", "10.0.0.0/8"]
    answer = claim(scene, "evil", claims, pods, ["0.0.0.0/1"])
    assert answer["type"] == "grant" and answer["carries"] == []
    refused = dict(answer["refused"])  # type: ignore[call-overload]
    assert set(refused) == {*claims, *pods, "0.0.0.0/1"}
    assert "node-1" in refused[f"{addresses.node(1).v4}/32"]

    assert seen_of_the_seed(scene) == before
    peers = scene.lab.seed.run(["wg", "show", "rz-seed", "allowed-ips"]).stdout
    evil = next(line for line in peers.splitlines() if addresses.node(1).v4 not in line)
    assert evil.split("\t")[1].split() == [f"{a}/{128 if ':' in a else 32}" for a in answer["addresses"]]  # type: ignore[attr-defined]

    after = scene.server.metrics()
    grown = sum(after[k] - counted.get(k, 0.0) for k in after if "refused" in k)
    assert grown == len(refused), {k: v for k, v in after.items() if "refused" in k}
    peer = next(p for p in scene.server.status().peers if p.name == "evil")
    assert len(peer.refused) == len(refused)


def test_a_stolen_name_is_no_use_without_its_certificate(scene: Scene) -> None:
    """Who is somebody is said by the certificate; the message has no say in it."""
    answer = claim(scene, "evil-too", [f"{addresses.node(2).v4}/32"], [], [])
    assert answer["type"] == "grant"
    names = {p.name: list(p.prefixes) for p in scene.server.status().peers}
    assert names["evil-too"] == [f"{addresses.node(2).v4}/32"]
    assert f"{addresses.node(1).v4}/32" in names["node-1"]


def scan(scene: Scene, targets: list[str], wait_s: float = 0.3) -> list[object]:
    report = scene.lab.node.run_tool("scan", ",".join(targets), SCANNED_TCP, SCANNED_UDP, wait_s)
    assert report["asked"] > 0 and not report["no_route"], report
    found: list[object] = report["answers"]
    return found


def test_a_scan_through_the_tunnel_finds_nothing_also_while_the_server_restarts(scene: Scene) -> None:
    inside = ["192.168.128.1", "fd8f:6d53:b97a:1::1"]
    assert scan(scene, inside) == []
    answers: list[object] = []
    with ThreadPoolExecutor(1) as pool:
        going = True

        def keep_scanning() -> int:
            rounds = 0
            while going:
                answers.extend(scan(scene, inside, wait_s=0.05))
                rounds += 1
            return rounds

        scanning = pool.submit(keep_scanning)
        try:
            for number in range(50):
                scene.server.kill()
                if number % 10 == 9:  # the whole pod, device and all
                    kill_programs(scene.lab.seed, "agent.carrier", "wireguard-go")
                    scene.lab.seed.run(["ip", "link", "delete", "rz-seed"], check=False)
                scene.server.start()
                time.sleep(0.3)
        finally:
            going = False
        rounds = scanning.result(60)
    assert rounds >= 20 and answers == []
    scene.server.wait_ready()
    wait_until(scene.reaches_the_pod, "traffic after the restarts")


def test_a_node_that_rewrites_its_own_tunnel_still_reaches_nothing(scene: Scene) -> None:
    """Root on the node takes the device from the daemon, allows everything in, and routes the seed's pods into the tunnel."""
    node = scene.lab.node
    scene.client.stop()
    key = node.run(["wg", "show", "rz-shoot", "peers"]).stdout.strip()
    node.run(["wg", "set", "rz-shoot", "peer", key, "allowed-ips", "0.0.0.0/0,::/0"])
    node.run(["nft", "delete", "table", "inet", "rhizome"])
    for target, gateway in ((addresses.SEED.v4, "10.10.0.1/32"), (addresses.SEED.v6, "fd00:10::1/128")):
        node.ip(f"route add {target} dev rz-shoot", f"route add {gateway} dev rz-shoot")
    assert scan(scene, [addresses.SEED.v4, addresses.SEED.v6, addresses.SEED_GATEWAY.v4, "192.168.128.1"]) == []
    scene.client.start()
    scene.client.wait_ready()
    wait_until(scene.reaches_the_pod, "traffic when the client is back")
