"""What goes wrong in such systems, done for real to a running tunnel, and how long traffic was gone.

Each fault is a function that breaks something on a Scene; where it also repairs it (a proxy that is started again) it
returns how long it kept it broken on purpose. Traffic is a probe from the seed to a pod, 100 questions a second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from lab import addresses
from lab.addresses import Pair
from lab.daemons import Daemon
from lab.lab import Lab
from lab.namespaces import Machine
from lab.probe import Report
from lab.processes import pids_in_network_namespace, wait_until

RATE = 100.0
#: The address that the server's name has before it moves.
OLD_PROXY = Pair("198.51.100.11", "2001:db8:100::11")


@dataclass(frozen=True, slots=True)
class Scene:
    """A lab with both daemons running and ready."""

    lab: Lab
    server: Daemon
    client: Daemon

    @classmethod
    def start(cls, lab: Lab) -> Scene:
        scene = cls(lab, lab.seed_server(), lab.shoot_client())
        scene.server.start()
        scene.client.start()
        scene.client.wait_ready()
        scene.server.wait_ready()
        return scene

    def reaches_the_pod(self) -> bool:
        ping = ["ping", "-n", "-c", "1", "-W", "0.3", addresses.pod(1).v4]
        return self.lab.seed.run(ping, check=False).returncode == 0


@dataclass(frozen=True, slots=True)
class Outage:
    """`outage_s`: the longest time without an answer, less the time that something was kept broken on purpose (`broken_s`)."""

    outage_s: float
    broken_s: float
    lost: int
    report: Report


@dataclass(frozen=True, slots=True)
class Fault:
    """`name` is the figure's, `words` are for people, `act` returns `broken_s`. `lossless`: not one packet may be lost."""

    name: str
    words: str
    act: Callable[[Scene], float]
    lossless: bool = False


def suffer(scene: Scene, fault: Fault, patience_s: float = 30.0) -> Outage:
    """Do it under traffic. Raises LabError when traffic is not back by itself within `patience_s`."""
    wait_until(scene.reaches_the_pod, "traffic before the fault")
    with scene.lab.seed.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=RATE) as probe:
        time.sleep(0.5)
        broken_s = fault.act(scene)
        wait_until(scene.reaches_the_pod, f"traffic after: {fault.words}", patience_s)
        time.sleep(1.5)
        wait_until(scene.reaches_the_pod, f"traffic a while after: {fault.words}", patience_s)
    report = probe.report
    return Outage(max(0.0, report.outage_s - broken_s), broken_s, report.lost, report)


def _timed(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def kill_programs(machine: Machine, *words: str) -> int:
    """SIGKILL every process on a machine whose command line has one of `words`; how many there were."""
    killed = 0
    for pid in pids_in_network_namespace(machine.path):
        line = _command_line(pid)
        if any(word in line for word in words):
            _kill(pid)
            killed += 1
    return killed


def _proxy_restart(scene: Scene) -> float:
    def away() -> None:
        scene.lab.kill_proxy()
        time.sleep(2.0)
        scene.lab.start_proxy()

    return _timed(away)


def _pod_restart(daemon: Daemon, ready: Callable[[], bool]) -> float:
    """Everything of a pod dies, device and streams included, and is started again."""

    def away() -> None:
        kill_programs(daemon.machine, daemon.command, "agent.carrier", "wireguard-go")
        for link in ("rz-seed", "rz-shoot"):
            daemon.machine.run(["ip", "link", "delete", link], check=False)
        daemon.start()
        wait_until(ready, f"{daemon.command} being there again", every_s=0.02)

    return _timed(away)


def _server_restart(scene: Scene) -> float:
    def listening() -> bool:
        return bool(scene.lab.seed.run(["ss", "-Hltn", f"sport = :{addresses.SERVER_PORT}"]).stdout)

    return _pod_restart(scene.server, listening)


def _client_restart(scene: Scene) -> float:
    # Its process is all that can be waited for: what it does next is what is measured.
    return _pod_restart(scene.client, lambda: scene.client.process.exit_code is None)


def _daemon_killed(daemon: Daemon) -> float:
    daemon.kill()
    time.sleep(1.0)
    daemon.start()
    daemon.wait_ready()
    return 0.0


def _daemon_stopped(daemon: Daemon) -> float:
    daemon.stop()
    time.sleep(1.0)
    daemon.start()
    daemon.wait_ready()
    return 0.0


def _name_moves(scene: Scene) -> float:
    """The load balancer gets another address, and DNS says so a moment later; the old one is silent from now on."""
    scene.lab.net.ip(f"address delete {OLD_PROXY.v4}/24 dev wan0")
    time.sleep(1.0)
    scene.lab.resolve_server_to()
    return 0.0


def _silence(scene: Scene) -> float:
    def away() -> None:
        scene.lab.block()
        time.sleep(8.0)
        scene.lab.unblock()

    return _timed(away)


def _quietly(action: Callable[[], object]) -> float:
    action()
    return 0.0


def prepare_old_address(scene: Scene) -> None:
    """Before `name_moves`: the client reaches the proxy by an address that is going to vanish."""
    net = scene.lab.net
    net.ip(f"address add {OLD_PROXY.v4}/24 dev wan0")
    net.nft(
        "table ip moved { }\ndelete table ip moved\ntable ip moved {\n  chain prerouting {\n"
        "    type nat hook prerouting priority dstnat;\n"
        f"    ip daddr {OLD_PROXY.v4} dnat to {addresses.PROXY.v4}\n  }}\n}}\n"
    )
    scene.lab.resolve_server_to(OLD_PROXY)
    kill_programs(scene.lab.node, "agent.carrier")
    wait_until(lambda: any(OLD_PROXY.v4 in there for there in scene.lab.connected_to()), "a stream by the old address")
    wait_until(scene.reaches_the_pod, "traffic by the old address")


FAULTS: tuple[Fault, ...] = (
    Fault("server_daemon_killed", "SIGKILL of the seed server's daemon, started again", lambda s: _daemon_killed(s.server), lossless=True),
    Fault("client_daemon_killed", "SIGKILL of the shoot client's daemon, started again", lambda s: _daemon_killed(s.client), lossless=True),
    Fault("server_daemon_stopped", "SIGTERM of the seed server's daemon, started again", lambda s: _daemon_stopped(s.server), lossless=True),
    Fault("client_daemon_stopped", "SIGTERM of the shoot client's daemon, started again", lambda s: _daemon_stopped(s.client), lossless=True),
    Fault("proxy_restart", "proxy killed, away for 2 s, started again", _proxy_restart),
    Fault("server_restart", "seed server's pod killed (daemon, carrier, device) and started again", _server_restart),
    Fault("client_restart", "shoot client's pod killed (daemon, carrier, device) and started again", _client_restart),
    Fault("server_carrier_killed", "SIGKILL of the seed server's carrier", lambda s: _quietly(lambda: kill_programs(s.lab.seed, "agent.carrier"))),
    Fault("client_carrier_killed", "SIGKILL of the shoot client's carrier", lambda s: _quietly(lambda: kill_programs(s.lab.node, "agent.carrier"))),
    Fault("server_device_deleted", "the seed server's device deleted by hand", lambda s: _quietly(lambda: s.lab.delete_device(s.lab.seed))),
    Fault("client_device_deleted", "the shoot client's device deleted by hand", lambda s: _quietly(lambda: s.lab.delete_device(s.lab.node))),
    Fault("server_routes_flushed", "the seed server's routes flushed by hand", lambda s: _quietly(lambda: s.lab.flush_routes(s.lab.seed))),
    Fault("client_routes_flushed", "the shoot client's routes flushed by hand", lambda s: _quietly(lambda: s.lab.flush_routes(s.lab.node))),
    Fault("server_nft_flushed", "nft flush ruleset on the seed", lambda s: _quietly(lambda: s.lab.flush_nft(s.lab.seed))),
    Fault("client_nft_flushed", "nft flush ruleset on the shoot's node", lambda s: _quietly(lambda: s.lab.flush_nft(s.lab.node))),
    Fault("silent_path", "the path silent for 8 s, then back", _silence),
    Fault("name_moves", "the server's name moves to another address, the old one falls silent", _name_moves),
    Fault("client_address_changed", "the node's uplink gets another address", lambda s: _quietly(s.lab.change_node_address)),
    Fault("nat_address_changed", "the NAT router gets another public address", lambda s: _quietly(s.lab.change_nat_address)),
)  # fmt: skip

#: What has to be done before the traffic of a fault starts.
PREPARE: dict[str, Callable[[Scene], None]] = {"name_moves": prepare_old_address}


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
