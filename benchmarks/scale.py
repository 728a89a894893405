"""One seed server with 100, 1,000 and 5,000 clients: how long they take to get in, what they cost, how their keys are
replaced, and how soon a dead one is.

The clients are those of `benchmarks._crowd`: streams through TLS with certificates, enrolment and WireGuard sessions are
real; they share one process, and this machine's cores with the server. Each has a node's address and a pod range of its
own, and all of them share the services' range, in 32 parts.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import Any

from agent.keys import generate_preshared_key, generate_private_key, public_key
from agent.model import IFALIAS_PREFIX, Device, Endpoint, Observed, Peer, PresharedKey, PublicKey, Tunnel
from agent.plan import plan
from agent.status import ASKED_KEYS_SUFFIX
from benchmarks._clients import Asker, Clients, gathered, seed_server
from benchmarks._crowd import SERVICES, offer
from benchmarks._process import pid_of, usage
from benchmarks.figure import Figure
from lab.daemons import Daemon
from lab.lab import Lab
from lab.processes import wait_until
from seed_server.assignment import parts

COUNTS = (100, 1000, 5000)
#: So many clients die, one after the other, each of which carries a part of the services.
DEATHS = 5
#: Nobody answers for a part for longer than this only if something is broken.
GIVE_UP_S = 30.0
IDLE_S = 15.0
SETTLE_S = 5.0
ROTATION_MAX_S = 600.0
#: With more it takes too long where all ends share two cores.
ROTATED_MAX = 2000
PLANS = 7
TUNNEL = IPv4Network("192.168.128.0/17")


def run() -> Iterator[Figure]:
    """`scale.FIGURE.COUNT`; `plot` draws each figure against the count."""
    for count in COUNTS:
        yield _plan(count)
        with Lab() as lab:
            server = seed_server(lab)
            server.start()
            with gathered(lab, count) as clients:
                yield from _arrival(clients, server)
                yield from _cost(server, count)
                if count <= ROTATED_MAX:
                    yield from _rotation(lab, server, count)
                yield from _deaths(lab, clients, server)


def _plan(count: int) -> Figure:
    """What each pass of the server's engine thinks, without what it reads and writes: here, that a part moved."""
    keys = [public_key(generate_private_key()) for _ in range(count)]
    psk = generate_preshared_key()
    want, have = (
        _hub(keys, psk, carrier=0),
        _hub(keys, psk, carrier=1, endpoint=Endpoint(IPv4Address("127.0.0.1"), 51820)),
    )
    times = []
    for _ in range(PLANS):
        begin = time.perf_counter()
        steps = plan(Tunnel((want,)), Observed(Tunnel((have,))))
        times.append(time.perf_counter() - begin)
        assert len(steps) == 1, "the part is set at its new carrier, which takes it from the old one"
    note = "desired and observed device compared, a part has moved; reading and writing the device not included"
    return Figure(f"scale.plan_s.{count}", statistics.median(times), "s", n=PLANS, note=note)


def _hub(keys: Sequence[PublicKey], psk: PresharedKey, carrier: int, endpoint: Endpoint | None = None) -> Device:
    """The server's device; the client `carrier` has a part of the services beside its own prefixes."""
    peers = []
    for number, key in enumerate(keys):
        own = offer(number)
        prefixes = {*own.nodes, *own.pods, IPv4Network(int(TUNNEL[0]) + number)}
        if number == carrier:
            prefixes.add(parts(SERVICES)[0])
        peers.append(Peer(key, frozenset(prefixes), endpoint, psk))
    return Device("bench", private_key=None, peers=frozenset(peers), alias=IFALIAS_PREFIX)


def _arrival(clients: Clients, server: Daemon) -> Iterator[Figure]:
    note = "all at once; from the first dial to the last grant"
    yield Figure(f"scale.enroll_s.{clients.count}", clients.enrolled_s, "s", note=note)
    note = "from the first dial until each has answered a canary through the tunnel"
    yield Figure(f"scale.answering_s.{clients.count}", clients.answering_s, "s", note=note)
    wait_until(lambda: _well(server) == clients.count, "all clients being well", 60, 0.5)


def _well(server: Daemon) -> int:
    return int(server.metrics().get('rhizome_clients{standing="well"}', 0))


def _cost(server: Daemon, count: int) -> Iterator[Figure]:
    pids = {word: pid_of(server.machine, word) for word in (server.command, "agent.carrier", "wireguard-go")}
    before = {word: usage(pid) for word, pid in pids.items()}
    time.sleep(IDLE_S)
    after = {word: usage(pid) for word, pid in pids.items()}
    rss = [after[word].rss_mib for word in pids]
    note = "daemon {:.0f}, carrier {:.0f}, wireguard-go {:.0f} MiB; resident, so shared pages count twice".format(*rss)
    yield Figure(f"scale.rss_mib.{count}", sum(rss), "MiB", note=note)
    cpu = [100 * (after[word].cpu_s - before[word].cpu_s) / IDLE_S for word in pids]
    note = "daemon {:.0f}, carrier {:.0f}, wireguard-go {:.0f} %; nothing but liveness and canaries".format(*cpu)
    yield Figure(f"scale.idle_cpu_percent.{count}", sum(cpu), "% of a core", note=note)


def _rotation(lab: Lab, server: Daemon, count: int) -> Iterator[Figure]:
    """WireGuard's keys are replaced, those of all clients too; somebody asks for a service all the while."""
    done, over = 'rhizome_wireguard_key_rotations_total{result="done"}', threading.Event()

    def watch() -> None:
        try:
            wait_until(lambda: server.metrics().get(done, 0) > 0, "the end of the rotation", ROTATION_MAX_S, 1.0)
        finally:
            over.set()

    _, part = _victims(server)[0]
    begin, watcher = time.monotonic(), threading.Thread(target=watch)
    (server.machine.directory / "run" / "rhizome" / f"{server.status().ifname}{ASKED_KEYS_SUFFIX}").touch()
    watcher.start()
    with closing(Asker(lab.seed)) as asker:
        silence_s = asker.longest_silence_s(part[1], over)
    watcher.join()
    note = "from the order until all clients have come over to a second device and the first one is gone"
    yield Figure(f"scale.rotation_s.{count}", time.monotonic() - begin, "s", note=note)
    note = "meanwhile, the longest time between two answers from a service's address, asked every 20 ms"
    yield Figure(f"scale.rotation_silence_s.{count}", silence_s, "s", note=note)


def _deaths(lab: Lab, clients: Clients, server: Daemon) -> Iterator[Figure]:
    """Each time, packets for a service of the dead client's are answered by another one."""
    times = []
    victims = _victims(server)  # asked for once: to tell of 5,000 clients is work for the server and for us
    with closing(Asker(lab.seed)) as asker:
        for number, part in victims:
            time.sleep(SETTLE_S)
            asker.until_answered(part[1], GIVE_UP_S)
            clients.freeze(number)
            times.append(asker.until_answered(part[1], GIVE_UP_S))
    note = "a client falls silent, its stream stays; until an address that it carried is answered for by another"
    yield Figure(f"scale.failover_s.{clients.count}", statistics.median(times), "s", n=len(times), note=note)
    yield Figure(f"scale.failover_worst_s.{clients.count}", max(times), "s", n=len(times), note="the slowest of them")


def _victims(server: Daemon) -> list[tuple[int, IPv4Network]]:
    """Clients by number, each with a part of the services that it carries."""
    found: dict[int, IPv4Network] = {}
    for peer in server.status().peers:
        for prefix in map(ip_network, peer.prefixes):
            if isinstance(prefix, IPv4Network) and prefix.subnet_of(SERVICES):
                found[int(peer.name.rpartition("-")[2])] = prefix
    return list(found.items())[:DEATHS]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Each figure over the number of clients, one panel for each unit."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        _, name, count = row["figure"].split(".")
        panels.setdefault(row["unit"], {}).setdefault(name, []).append((float(count), row["value"]))
    fig, all_axes = plt.subplots(1, len(panels), figsize=(12, 4.2), squeeze=False)
    for axes, (unit, lines) in zip(all_axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.set_xscale("log")
        if unit == "s":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("clients")
        axes.set_ylabel(unit)
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize=7)
    fig.suptitle("One seed server by the number of its clients", fontsize=10)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
