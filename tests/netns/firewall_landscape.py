"""Four hosts for the firewall's tests: a seed and a shoot node with a veth for a tunnel, and a host behind each.

    workload 10.50.0.9 -- seed (tun0 192.168.128.1) == (tun0 192.168.128.2) node -- pod 10.1.0.9
             fd50::9                  fd8f::1                  fd8f::2               fd01::9

The node also has a service address, 10.96.0.1 and fd96::1, that it translates to the pod's, as kube-proxy does.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network

import pytest

from agent.firewall import Firewall, render
from agent.model import IPNetwork
from agent.nft import _REPLACE
from lab.inside import Inside

TUNNEL = ("192.168.128.0/17", "fd8f::/64")
PODS = ("10.1.0.0/16", "fd01::/64")
SERVICES = ("10.96.0.0/24", "fd96::/64")
WAIT_S = 0.4  # for what must not arrive


def networks(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(map(ip_network, texts))


KUBE_PROXY = """
table inet service {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 10.96.0.1 dnat ip to 10.1.0.9
		ip6 daddr fd96::1 dnat ip6 to fd01::9
	}
}
"""
SYSCTLS = (
    "net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0 "
    "net.ipv6.conf.all.forwarding=1 net.ipv6.icmp.ratelimit=0 net.ipv6.conf.default.accept_dad=0"
)
# What IPv6 says by itself on a link with a link layer would be counted as spoofed.
SILENCE = """
table inet silence {
	chain output {
		type filter hook output priority filter; policy accept;
		oifname "tun0" icmpv6 type { mld-listener-report, mld2-listener-report, nd-router-solicit } drop
	}
}
"""


class Landscape:
    """The four hosts, each a namespace; a socket stays in the one it was made in.

    `port` is what everybody uses, a new one for every test: connection tracking remembers the old ones.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._sockets = ExitStack()
        self.port = 7000
        self.workload, self.seed, self.node, self.pod = hosts = tuple(Inside() for _ in range(4))
        for host in hosts:
            stack.callback(host.close)
            self.run(host, f"sysctl -qw {SYSCTLS}")
            self.nft(host, SILENCE)
        self._join("eth0", self.workload, "10.50.0.9/24 fd50::9/64", self.seed, "10.50.0.1/24 fd50::1/64")
        self._join("tun0", self.seed, "192.168.128.1/17 fd8f::1/64", self.node, "192.168.128.2/17 fd8f::2/64")
        self._join("eth0", self.node, "10.1.0.1/24 fd01::1/64", self.pod, "10.1.0.9/24 fd01::9/64", link_layer=True)
        for host, gateways in (
            (self.seed, "192.168.128.2 fd8f::2"),
            (self.node, "192.168.128.1 fd8f::1"),
            (self.workload, "10.50.0.1 fd50::1"),
            (self.pod, "10.1.0.1 fd01::1"),
        ):
            self.ip(host, "link set lo up", *(f"route add default via {gateway}" for gateway in gateways.split()))
        self.nft(self.node, KUBE_PROXY)
        for host in hosts:
            self._wait_until_up(host)

    def _join(
        self, name: str, one: Inside, addresses: str, other: Inside, others: str, *, link_layer: bool = False
    ) -> None:
        self.ip(one, f"link add {name} type veth peer name {name} netns {other.path}")
        for host, listed in ((one, addresses), (other, others)):
            commands = [f"address add {a} dev {name}" + (" nodad" if ":" in a else "") for a in listed.split()]
            if not link_layer:  # no neighbours to discover, no address by itself
                commands.append(f"link set {name} address 02:00:00:00:00:01 arp off multicast off")
                commands.append(f"link set {name} addrgenmode none")
            if name == "tun0":
                commands.append("link set tun0 mtu 1400")
            self.ip(host, *commands, f"link set {name} up")

    @contextmanager
    def fresh(self) -> Iterator[Landscape]:
        """For one test: no table of ours, no open socket, nothing that an earlier test changed."""
        self.port += 1
        for host in (self.seed, self.node):
            self.nft(host, _REPLACE)
        with ExitStack() as self._sockets:
            yield self

    @contextmanager
    def narrowed(self, mtu_bytes: int) -> Iterator[None]:
        """The node's link to the pod is narrower than the tunnel."""
        for host in (self.node, self.pod):
            self.ip(host, f"link set eth0 mtu {mtu_bytes}")
        try:
            yield
        finally:
            for host in (self.node, self.pod):
                self.ip(host, "link set eth0 mtu 1500")
            for host in (self.workload, self.seed, self.node):
                self.run(host, "ip -4 route flush cache")
                self.run(host, "ip -6 route flush cache")

    def _wait_until_up(self, host: Inside) -> None:
        """Until the kernel has finished bringing a link up, it drops what is sent there."""
        deadline = time.monotonic() + 5
        while any(link["operstate"] not in ("UP", "UNKNOWN") for link in json.loads(self.run(host, "ip -j link"))):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def run(self, host: Inside, command: str) -> str:
        with host.entered():
            return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout

    def ip(self, host: Inside, *commands: str) -> None:
        with host.entered():
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), check=True, text=True)

    def nft(self, host: Inside, ruleset: str) -> None:
        with host.entered():
            subprocess.run(["nft", "-f", "-"], input=ruleset, check=True, text=True)

    def apply(self, host: Inside, firewall: Firewall) -> None:
        self.nft(host, _REPLACE + render(firewall))

    def counter(self, host: Inside, name: str) -> int:
        listed = json.loads(self.run(host, f"nft -j list counter inet rhizome {name}"))
        return int(next(entry["counter"]["packets"] for entry in listed["nftables"] if "counter" in entry))

    def tcp(self, host: Inside, source: str = "") -> socket.socket:
        return self._socket(host, socket.SOCK_STREAM, source or "0.0.0.0", 0)

    def udp(self, host: Inside, source: str, port: int | None = None) -> socket.socket:
        return self._socket(host, socket.SOCK_DGRAM, source, port or self.port)

    def listen(self, host: Inside, address: str) -> socket.socket:
        listener = self._socket(host, socket.SOCK_STREAM, address, self.port)
        listener.listen(64)
        return listener

    def _socket(self, host: Inside, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        with host.entered():
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        self._sockets.enter_context(made)
        made.settimeout(2.0)
        made.bind((address, port))
        return made


def talk(client: socket.socket, listener: socket.socket, address: str) -> tuple[str, socket.socket]:
    """A connection is made and carries a word each way; who the listener saw, and its side of the connection."""
    client.connect((address, listener.getsockname()[1]))
    served, peer = listener.accept()
    with served:
        served.settimeout(2.0)
        client.sendall(b"question")
        assert served.recv(16) == b"question"
        served.sendall(b"answer")
        assert client.recv(16) == b"answer"
        return peer[0], served


def silent(*sockets: socket.socket) -> bool:
    """Nothing arrives at any of them."""
    return select.select(sockets, [], [], WAIT_S)[0] == []


def knock(port: int, sockets: Sequence[socket.socket], addresses: Sequence[str]) -> None:
    """Begin to connect, without waiting for the outcome."""
    for made, address in zip(sockets, addresses, strict=True):
        made.setblocking(False)
        assert made.connect_ex((address, port)) == errno.EINPROGRESS


FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])


def pick(v6: bool, *addresses: str) -> list[str]:
    """Addresses come in pairs, IPv4 first."""
    return list(addresses[int(v6) :: 2])
