"""Throughput and round trips of the tunnel beside what it competes with, between the same seed and the same node.

bare: no tunnel. direct: WireGuard alone, the same backend over UDP. carrier: the product, without and with a proxy.
openvpn_tcp: Debian's OpenVPN over TCP, set up as hosted control planes do it today. Two cores carry everything of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from agent.carrier.api import TlsFiles
from agent.keys import generate_private_key, public_key
from agent.wireguard.choose import find_program
from benchmarks.figure import Figure
from lab import addresses
from lab.faults import Scene, kill_programs
from lab.iperf import iperf
from lab.lab import Lab
from lab.processes import wait_until

ROUNDS = 3
SECONDS = 4.0
DIRECT_PORT = 51899
NOTE = "seed to node, one TCP flow; both ends, relays and iperf3 share two cores"


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians of ROUNDS. Round trips are of a UDP question 50 times a second, `loaded_ms` beside the flow."""

    mbit_s: float
    idle_ms: float
    loaded_ms: float


def run() -> Iterator[Figure]:
    """`tunnel.WAY.mbit_s`, `.rtt_idle_ms` and `.rtt_loaded_ms`; the baseline of all is OpenVPN over TCP."""
    ways: dict[str, Measured] = {}
    with Lab("none") as lab:
        scene = Scene.start(lab)
        ways["carrier"] = _measure(lab, addresses.node(1).v4)
        for daemon in (scene.server, scene.client):
            kill_programs(daemon.machine, daemon.command, "agent.carrier", "wireguard-go")
        for machine, table in ((lab.seed, "rhizome"), (lab.node, "rhizome")):
            machine.run(["nft", "delete", "table", "inet", table], check=False)
        with _direct(lab) as address:
            ways["direct"] = _measure(lab, address)
        with _openvpn(lab) as address:
            ways["openvpn_tcp"] = _measure(lab, address)
        ways["bare"] = _measure(lab, addresses.SEED.v4, reverse=True)
    with Lab("envoy-sni") as lab:
        Scene.start(lab)
        ways["carrier_envoy"] = _measure(lab, addresses.node(1).v4)
    other = ways["openvpn_tcp"]
    for way, seen in ways.items():
        yield Figure(f"tunnel.{way}.mbit_s", seen.mbit_s, "Mbit/s", other.mbit_s, ROUNDS, NOTE)
        yield Figure(f"tunnel.{way}.rtt_idle_ms", seen.idle_ms, "ms", other.idle_ms, ROUNDS, "p50 of a UDP question")
        yield Figure(
            f"tunnel.{way}.rtt_loaded_ms", seen.loaded_ms, "ms", other.loaded_ms, ROUNDS, "p50 beside the flow"
        )


def _measure(lab: Lab, address: str, *, reverse: bool = False) -> Measured:
    """`reverse`: the address is the seed's, and the node asks it to send, because nobody can dial the node without a tunnel."""
    client, server = (lab.node, lab.seed) if reverse else (lab.seed, lab.node)
    if reverse:
        _allow(lab, "tcp dport 5201", f"udp dport {addresses.ECHO_PORT}")
        echo = lab.seed.spawn(
            lab.seed.tool("serve", "seed", addresses.HTTP_PORT, addresses.ECHO_PORT, addresses.BULK_PORT), name="echo"
        )
        echo.wait_for_output("ready")
    rates, idle, loaded = [], [], []
    for _ in range(ROUNDS):
        with client.probe("udp", address, addresses.ECHO_PORT, rate=50) as probe:
            time.sleep(1.5)
        idle.append(probe.report.rtt_p50_ms)
        with client.probe("udp", address, addresses.ECHO_PORT, rate=50) as probe:
            rates.append(iperf(client, server, address, seconds=SECONDS, download=reverse).mbit_s)
        loaded.append(probe.report.rtt_p50_ms)
    return Measured(median(rates), median(idle), median(loaded))


def _allow(lab: Lab, *matches: str) -> None:
    """On the internet's way to the seed, beside the server's port."""
    for match in matches:
        lab.net.nft(f'insert rule inet lab forward iifname "wan0" oifname "seed0" {match} accept')


@contextmanager
def _direct(lab: Lab) -> Iterator[str]:
    """Two devices of wireguard-go, and the node dials the seed's UDP port. Gives the node's address in there."""
    _allow(lab, f"udp dport {DIRECT_PORT}")
    keys = {"seed": generate_private_key(), "node": generate_private_key()}
    ends = (("seed", lab.seed, "172.31.0.1", "node"), ("node", lab.node, "172.31.0.2", "seed"))
    for name, machine, own, other in ends:
        machine.run([str(find_program()), "wg-direct"], env={"GOMEMLIMIT": "100MiB", "GOGC": "off"})
        peer = ["peer", str(public_key(keys[other])), "allowed-ips", "172.31.0.0/30"]
        if name == "node":
            peer += ["endpoint", f"{addresses.SEED.v4}:{DIRECT_PORT}", "persistent-keepalive", "5"]
        port = ["listen-port", str(DIRECT_PORT)] if name == "seed" else []
        machine.run(["wg", "set", "wg-direct", "private-key", "/dev/stdin", *port, *peer], input=keys[name].reveal())
        machine.ip(f"address add {own}/30 dev wg-direct", "link set wg-direct mtu 1420 up")
    yield from _until_it_answers(lab, "172.31.0.2", lambda: [kill_programs(m, "wireguard-go") for _, m, _, _ in ends])


@contextmanager
def _openvpn(lab: Lab) -> Iterator[str]:
    """OpenVPN point to point over TCP, AES-256-GCM, TCP_NODELAY. Gives the node's address in there."""
    pki, client = lab.pki.directory, lab.pki.client("openvpn")
    server = TlsFiles(client.ca, str(pki / "server.crt"), str(pki / "server.key"))
    common = [
        "openvpn",
        "--dev",
        "tun",
        "--data-ciphers",
        "AES-256-GCM",
        "--cipher",
        "AES-256-GCM",
        "--auth",
        "SHA256",
        "--tcp-nodelay",
    ]
    common += ["--socket-flags", "TCP_NODELAY", "--txqueuelen", "1000", "--verb", "3"]
    tls = [["--ca", f.ca, "--cert", f.certificate, "--key", f.key] for f in (server, client)]
    port = str(addresses.SERVER_PORT)
    lab.seed.spawn(
        [
            *common,
            *tls[0],
            "--proto",
            "tcp-server",
            "--lport",
            port,
            "--tls-server",
            "--dh",
            "none",
            "--ifconfig",
            "172.30.0.1",
            "172.30.0.2",
        ],
        name="openvpn",
    )
    lab.node.spawn(
        [
            *common,
            *tls[1],
            "--proto",
            "tcp-client",
            "--remote",
            addresses.SEED.v4,
            port,
            "--nobind",
            "--tls-client",
            "--ifconfig",
            "172.30.0.2",
            "172.30.0.1",
        ],
        name="openvpn",
    )
    yield from _until_it_answers(lab, "172.30.0.2", lambda: [kill_programs(m, "openvpn") for m in (lab.seed, lab.node)])


def _until_it_answers(lab: Lab, address: str, end: Callable[[], object]) -> Iterator[str]:
    def answers() -> bool:
        return lab.seed.run(["ping", "-n", "-c", "1", "-W", "1", address], check=False).returncode == 0

    try:
        wait_until(answers, f"{address} answering", 30)
        yield address
    finally:
        end()
