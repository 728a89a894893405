"""The lab: the machines of lab.addresses, the internet's DNS, servers to reach in the shoot, and everything gone at the end.

    with Lab(proxy="none") as lab:
        lab.node.run(["ping", "-c1", "198.51.100.1"])
        lab.seed.run_tool("scan", "198.51.100.2", "1-1024", "1-1024")

A lab leaves nothing behind: no namespace, link, process or file, also after an exception or Ctrl-C. If its own process is
killed, the record in its directory lets `python -m lab down` finish the work.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Self

from agent.model import IFALIAS_PREFIX, ROUTE_TABLE
from lab import addresses, topology
from lab.addresses import Family, Pair
from lab.daemons import (
    SEED_IFNAME,
    SHOOT_IFNAME,
    SIDECAR_IFNAME,
    Daemon,
    Pki,
    Value,
    node_name,
    seed_settings,
    shoot_settings,
    sidecar_settings,
)
from lab.front import KINDS, Front
from lab.impair import Impairment
from lab.names import Names
from lab.namespaces import Machine
from lab.processes import LabError, Process
from lab.records import Record, claim, started


class Lab:
    """A running lab. `proxy` is one of lab.front.KINDS or "none"; `underlay` is the address family of DNS answers."""

    def __init__(
        self,
        proxy: str = "none",
        *,
        nodes: int = 1,
        seed_pods: int = 0,
        underlay: Family = 4,
        mtu_bytes: int = 1500,
        impairment: Impairment | None = None,
    ) -> None:
        if proxy != "none" and proxy not in KINDS:
            raise LabError(f"no proxy is called {proxy!r}; there are none, {', '.join(KINDS)}")
        self.proxy = proxy
        self.underlay: Family = underlay
        self.impairment = impairment
        self.machines: dict[str, Machine] = {}
        self._plan = topology.Plan(
            nodes, seed_pods, mtu_bytes, straight=proxy == "none", impaired=impairment is not None
        )
        self._undo: list[Callable[[], None]] = []

    # The machines.

    @property
    def seed(self) -> Machine:
        return self.machines["seed"]

    @property
    def net(self) -> Machine:
        return self.machines["net"]

    @property
    def nat(self) -> Machine:
        return self.machines["nat"]

    @property
    def node(self) -> Machine:
        """The first node."""
        return self.machines["node1"]

    @property
    def pod(self) -> Machine:
        """The first node's pod."""
        return self.machines["pod1"]

    @property
    def nodes(self) -> list[Machine]:
        return [self.machines[f"node{index}"] for index in range(1, self._plan.nodes + 1)]

    @property
    def pods(self) -> list[Machine]:
        return [self.machines[f"pod{index}"] for index in range(1, self._plan.nodes + 1)]

    @property
    def seed_pods(self) -> list[Machine]:
        """Pods of the control plane beside the seed server's."""
        return [self.machines[f"seedpod{index}"] for index in range(1, self._plan.seed_pods + 1)]

    # Life.

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Build everything. Whatever was built is gone again when this raises."""
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces and must be run as root")
        try:
            self._build()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove everything, in the reverse order; a second Ctrl-C waits for it."""
        failures: list[Exception] = []
        with _undisturbed():
            while self._undo:
                try:
                    self._undo.pop()()
                except Exception as exc:
                    failures.append(exc)
        if failures:
            raise ExceptionGroup("the lab could not remove everything", failures)

    def _build(self) -> None:
        self.directory, prefix = claim()
        self._undo.append(lambda: shutil.rmtree(self.directory))
        self.directory.chmod(0o755)  # proxies drop their privileges and still read their files
        indexes = range(1, self._plan.nodes + 1)
        names = ["seed", "net", "nat", *(f"seedpod{index}" for index in range(1, self._plan.seed_pods + 1))]
        names += [f"{kind}{index}" for index in indexes for kind in ("node", "pod")]
        self.record = Record(
            str(self.directory),
            prefix,
            tuple(prefix + name for name in names),
            (),
            self.proxy,
            os.getpid(),
            started(os.getpid()),
        )
        self.record.save()
        for name in names:
            self.machines[name] = Machine(f"{prefix}{name}", self.directory / name, [addresses.DNS[self.underlay]])
            self._undo.append(self.machines[name].destroy)
            self.machines[name].start()
        for machine in self.machines.values():
            machine.wait_ready()
        self.record = replace(self.record, pauses=tuple(machine.pause_pid for machine in self.machines.values()))
        self.record.save()
        topology.wire(self.machines, self._plan)
        if self.impairment is not None:
            self._impair(self.impairment)
        topology.finish(self.machines, self._plan)
        self.names = Names(self.net, (addresses.DNS.v4, addresses.DNS.v6))
        self.resolve_server_to()
        self.front = Front(self.proxy, self.net, self.underlay) if self.proxy != "none" else None
        servers = [
            self._serve(machine, name) for name, machine in self.machines.items() if name.startswith(("node", "pod"))
        ]
        for server in servers:
            server.wait_for_output("ready")

    def _impair(self, impairment: Impairment) -> None:
        self._settings = self.directory / "impairment.json"
        self._settings.write_text(impairment.to_json())
        self._impairer = self.net.spawn(
            self.net.tool("../impair", self.net.proc_path, self.nat.proc_path, "wan0", self._settings), name="impair"
        )
        self._impairer.wait_for_output("ready")
        for machine in (self.net, self.nat):
            machine.ip(f"link set wan0 mtu {self._plan.mtu_bytes} txqueuelen 1000 up")

    @staticmethod
    def _serve(machine: Machine, name: str) -> Process:
        return machine.spawn(
            machine.tool("serve", name, addresses.HTTP_PORT, addresses.ECHO_PORT, addresses.BULK_PORT), name="serve"
        )

    # The daemons.

    @cached_property
    def pki(self) -> Pki:
        """The control plane's CA."""
        return Pki(self.directory / "pki")

    def seed_server(self, **settings: Value) -> Daemon:
        """The seed server with the settings that fit this lab, changed by `settings`; not yet started."""
        tls = self.pki.server()
        return Daemon("rhizome-seed-server", self.seed, SEED_IFNAME, seed_settings(self.seed, tls) | settings)

    def shoot_client(self, index: int = 1, **settings: Value) -> Daemon:
        """The shoot client of one node with the settings that fit this lab, changed by `settings`; not yet started."""
        tls = self.pki.client(node_name(index))
        way = dict(self.front.kind.settings) if self.front is not None else {}
        return Daemon(
            "rhizome-shoot-client", self.nodes[index - 1], SHOOT_IFNAME, shoot_settings(index, tls) | way | settings
        )

    def sidecar(self, index: int = 1, name: str = "", **settings: Value) -> Daemon:
        """The sidecar of one control-plane pod, by default named after it; not yet started."""
        tls = self.pki.sidecar(name or f"seed-pod-{index}")
        return Daemon(
            "rhizome-agent sidecar", self.seed_pods[index - 1], SIDECAR_IFNAME, sidecar_settings(tls) | settings
        )

    # What can be seen from outside the daemons.

    def connected_from(self) -> list[str]:
        """Where the seed server's connections come from, as the seed's kernel says."""
        return [host for host, _ in _connections(self.seed, f"sport = :{addresses.SERVER_PORT}")]

    def connected_to(self, index: int = 1) -> list[str]:
        """Where a node's connections to the outside go to, address and port, as its kernel says."""
        own = addresses.INTERNET[self.underlay == 6], addresses.SEED_PODS[self.underlay == 6]
        return [
            _socket(host, port)
            for host, port in _connections(self.nodes[index - 1], "")
            if any(ip_address(host) in ip_network(network) for network in own)
        ]

    def came_the_right_way(self) -> bool:
        """Whether there is one connection, from the node to the proxy and from there to the seed server, and no other."""
        sources = addresses.SEED_GATEWAY if self.front is not None else [addresses.NAT_OUTSIDE[self.underlay]]
        seen = self.connected_from()
        return len(seen) == 1 and seen[0] in tuple(sources) and self.connected_to() == [self.entrance()]

    def entrance(self) -> str:
        """Address and port that a shoot client has to dial: the proxy's, or without one the seed server's."""
        if self.front is None:
            return _socket(addresses.SEED[self.underlay], addresses.SERVER_PORT)
        return _socket(addresses.PROXY[self.underlay], self.front.kind.port)

    def tunnel_addresses(self, machine: Machine) -> list[str]:
        """The machine's addresses inside the tunnel network, all families."""
        networks = [ip_network(text) for text in addresses.TUNNEL]
        listed = json.loads(machine.run(["ip", "-j", "address"]).stdout)
        texts = [info["local"] for link in listed for info in link["addr_info"]]
        return [text for text in texts if any(ip_address(text) in network for network in networks)]

    def handshake_age_s(self, machine: Machine) -> float:
        """Seconds since WireGuard's last handshake on a machine, as `wg` says; NaN when there was none."""
        lines = machine.run(["wg", "show", "all", "latest-handshakes"]).stdout.splitlines()
        latest = max((int(line.split()[-1]) for line in lines), default=0)
        return max(0.0, time.time() - latest) if latest else math.nan

    # Faults and changes. Each is what really happens to such systems.

    def resolve_server_to(self, *pairs: Pair) -> None:
        """Change what DNS says of the server's name, to these hosts' addresses of the underlay's family. Without any:
        what is right, that is the SNI proxy, or the seed itself (which a CONNECT proxy looks up)."""
        right = addresses.PROXY if self.proxy.endswith("-sni") else addresses.SEED
        self.names.set(
            {
                addresses.SERVER_NAME: [pair[self.underlay] for pair in pairs or (right,)],
                addresses.PROXY_NAME: [addresses.PROXY[self.underlay]],
            }
        )

    def kill_proxy(self) -> None:
        """SIGKILL: every connection through it ends, and its port refuses."""
        self._proxy().kill()

    def start_proxy(self) -> None:
        """After `kill_proxy`; listens when this returns."""
        self._proxy().start()

    def _proxy(self) -> Front:
        if self.front is None:
            raise LabError("this lab has no proxy")
        return self.front

    def delete_device(self, machine: Machine) -> None:
        """`ip link delete` of Rhizome's WireGuard device, by hand."""
        for name in self._devices(machine):
            machine.ip(f"link delete {name}")

    def flush_routes(self, machine: Machine) -> None:
        """`ip route flush` of Rhizome's routing table, by hand."""
        for family in ("-4", "-6"):
            machine.run(["ip", family, "route", "flush", "table", str(ROUTE_TABLE)])

    def _devices(self, machine: Machine) -> list[str]:
        links = json.loads(machine.run(["ip", "-j", "link"]).stdout)
        return [link["ifname"] for link in links if link.get("ifalias", "").startswith(IFALIAS_PREFIX)]

    def block(self, direction: str = "both") -> None:
        """Drop silently, on the NAT router, what goes `up` (out of the shoot), `down`, or both. Until `unblock`."""
        rules = {"up": 'oifname "wan0" drop', "down": 'iifname "wan0" drop'}
        wanted = rules.values() if direction == "both" else [rules[direction]]
        lines = "".join(f"    {rule}\n" for rule in wanted)
        self.nat.nft(
            "table inet blocked { }\ndelete table inet blocked\n"
            f"table inet blocked {{\n  chain forward {{\n    type filter hook forward priority -300;\n{lines}  }}\n}}\n"
        )

    def unblock(self) -> None:
        self.nat.nft("table inet blocked { }\ndelete table inet blocked\n")

    def change_impairment(self, impairment: Impairment) -> None:
        """Change the wire while packets are on it. Only in a lab that was made with an impairment."""
        self._settings.write_text(impairment.to_json())
        self._impairer.signal(signal.SIGHUP)

    def flush_nft(self, machine: Machine) -> None:
        """`nft flush ruleset` by hand on a machine. A node's own rules are put back in the same transaction, as kube-proxy would."""
        own = "".join(
            topology.node_firewall(index) for index, node in enumerate(self.nodes, start=1) if node is machine
        )
        machine.nft(f"flush ruleset\n{own}")

    def change_node_address(self, index: int = 1) -> None:
        """A node's uplink gets another address, as with a new DHCP lease; connections from the old one die silently."""
        node = self.nodes[index - 1]
        topology.move(node, "eth0", addresses.node(index), addresses.spare_node(index), addresses.NAT_INSIDE)

    def change_nat_address(self) -> None:
        """The provider gives the NAT router another public address and forgets the flows of the old one."""
        topology.move(self.nat, "wan0", addresses.NAT_OUTSIDE, addresses.NAT_OUTSIDE_SPARE, addresses.NET)

    # Keeping it.

    def keep(self) -> Record:
        """Leave everything running when this process ends, for `python -m lab down` to remove."""
        self._undo.clear()
        self.record.keep()
        return self.record


def _socket(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connections(machine: Machine, condition: str) -> list[tuple[str, int]]:
    """The far ends of a machine's established TCP connections."""
    lines = machine.run(["ss", "-Htn", "state", "established", *condition.split()]).stdout.splitlines()
    ends = [line.split()[3].rpartition(":") for line in lines]
    return [(host.strip("[]").removeprefix("::ffff:"), int(port)) for host, _, port in ends]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the block, so that a clean-up is never left half-way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, _: pending.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in pending:
            signal.raise_signal(number)
