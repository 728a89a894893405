"""The firewall under real packets: a seed and a shoot node with a veth for a tunnel, and a host behind each.

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
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.firewall import Firewall, render
from agent.model import IPNetwork
from agent.nft import _REPLACE
from lab.inside import Inside

TUNNEL = ("192.168.128.0/17", "fd8f::/64")
PODS = ("10.1.0.0/16", "fd01::/64")
SERVICES = ("10.96.0.0/24", "fd96::/64")
GOLDEN = Path(__file__).parents[1] / "golden" / "firewall"
WAIT_S = 0.4  # for what must not arrive


def networks(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(map(ip_network, texts))


DEVICES = frozenset({"tun0"})
SEED = Firewall(DEVICES, networks(*TUNNEL, *PODS, *SERVICES), mtu_bytes=1400, local_ports=frozenset({51820}))
NODE = Firewall(
    DEVICES,
    sources=networks(*TUNNEL, "10.50.0.0/24", "fd50::/64"),
    initiators=networks(*TUNNEL),
    destinations=networks(*TUNNEL, *SERVICES),
    masquerade=networks(*SERVICES),
    mtu_bytes=1400,
)
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
        self._join("eth0", self.node, "10.1.0.1/24 fd01::1/64", self.pod, "10.1.0.9/24 fd01::9/64")
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

    def _join(self, name: str, one: Inside, addresses: str, other: Inside, others: str) -> None:
        self.ip(one, f"link add {name} type veth peer name {name} netns {other.path}")
        for host, listed in ((one, addresses), (other, others)):
            commands = [f"address add {address} dev {name} nodad" for address in listed.split()]
            if name == "tun0":  # a tunnel has no link layer: no neighbours to discover, no address by itself
                commands.append("link set tun0 address 02:00:00:00:00:01 arp off multicast off mtu 1400")
                commands.append("link set tun0 addrgenmode none")
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

    def _join(self, name: str, one: Inside, addresses: str, other: Inside, others: str) -> None:
        self.run(one, f"ip link add {name} type veth peer name {name} netns {other.path}")
        for host, listed in ((one, addresses), (other, others)):
            if name == "tun0":  # a tunnel has no link layer: no neighbours to discover, no address by itself
                self.run(host, "ip link set tun0 address 02:00:00:00:00:01 arp off multicast off mtu 1400")
                self.run(host, "ip link set tun0 addrgenmode none")
            for address in listed.split():
                self.run(host, f"ip address add {address} dev {name}" + (" nodad" if ":" in address else ""))
            self.run(host, f"ip link set {name} up")

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


@pytest.fixture(scope="module")
def landscape() -> Iterator[Landscape]:
    with ExitStack() as stack:
        yield Landscape(stack)


@pytest.fixture
def land(landscape: Landscape) -> Iterator[Landscape]:
    with landscape.fresh():
        yield landscape


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


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_what_was_rendered_is_what_nft_lists(path: Path) -> None:
    """Nothing depends on it, but it makes a listing easy to compare; another version of nft may say it in other words."""
    inside = Inside()
    try:
        with inside.entered():
            subprocess.run(["nft", "-f", str(path)], check=True)
            listing = subprocess.run(
                ["nft", "-s", "list", "ruleset"], check=True, capture_output=True, text=True
            ).stdout
    finally:
        inside.close()
    assert listing == path.read_text()


@FAMILIES
def test_the_shoot_reaches_nothing_of_the_seed(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    here, behind, node, pod = pick(
        v6, "192.168.128.1", "fd8f::1", "10.50.0.9", "fd50::9", "192.168.128.2", "fd8f::2", "10.1.0.9", "fd01::9"
    )
    wildcard = "::" if v6 else "0.0.0.0"
    servers = [land.listen(land.seed, wildcard), land.listen(land.workload, wildcard)]
    servers += [land.udp(land.seed, wildcard), land.udp(land.workload, wildcard)]
    clients = [land.tcp(land.node, node), land.tcp(land.node, node), land.tcp(land.pod, pod), land.tcp(land.pod, pod)]
    knock(land.port, clients, [here, behind, here, behind])
    for sender in (land.udp(land.node, node), land.udp(land.pod, pod)):
        for address in (here, behind):
            sender.sendto(b"?", (address, land.port))
    for host in (land.node, land.pod):
        for address in (here, behind):
            with pytest.raises(subprocess.CalledProcessError):
                land.run(host, f"ping -c1 -W0.2 {address}")
    assert silent(*servers, *clients)
    assert land.counter(land.seed, "denied") >= 12
    assert land.counter(land.seed, "spoofed") == 0


@FAMILIES
def test_the_seed_reaches_the_shoot_and_gets_its_answers(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    workload, seed, pod, node = pick(
        v6, "10.50.0.9", "fd50::9", "192.168.128.1", "fd8f::1", "10.1.0.9", "fd01::9", "192.168.128.2", "fd8f::2"
    )
    assert talk(land.tcp(land.workload, workload), land.listen(land.pod, pod), pod)[0] == workload
    assert talk(land.tcp(land.seed, seed), land.listen(land.node, node), node)[0] == seed
    asker, answerer = land.udp(land.workload, workload), land.udp(land.pod, pod)
    asker.sendto(b"question", (pod, land.port))
    answerer.sendto(b"answer", answerer.recvfrom(16)[1])
    assert asker.recv(16) == b"answer"
    land.run(land.workload, f"ping -c1 -W1 {pod}")


@FAMILIES
def test_a_source_that_is_not_the_shoots_does_not_pass_not_even_as_an_answer(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    seed, workload = pick(v6, "192.168.128.1", "fd8f::1", "10.50.0.9", "fd50::9")
    (outside,) = pick(v6, "203.0.113.5", "2001:db8::5")
    land.run(land.node, f"ip address replace {outside} dev lo")
    waiting = land.udp(land.seed, seed)
    land.run(land.seed, f"ip route replace {outside} dev eth0")  # the seed knows it elsewhere, and has just asked it
    waiting.sendto(b"question", (outside, land.port))
    liar = land.udp(land.node, outside)
    liar.sendto(b"lie", (seed, land.port))
    liar.sendto(b"lie", (workload, land.port))
    assert silent(waiting)
    assert land.counter(land.seed, "spoofed") == 2


@FAMILIES
def test_errors_of_our_own_connections_come_back(land: Landscape, v6: bool) -> None:
    land.apply(land.seed, SEED)
    workload, pod = pick(v6, "10.50.0.9", "fd50::9", "10.1.0.9", "fd01::9")
    asker = land.udp(land.workload, workload)
    asker.connect((pod, land.port))
    asker.send(b"nobody listens here")
    with pytest.raises(ConnectionRefusedError):
        asker.recv(16)

    # Path MTU discovery (RFC 1191, RFC 8201).
    level, discover, do, mtu = (
        (socket.IPPROTO_IPV6, 23, 2, 24) if v6 else (socket.IPPROTO_IP, 10, 2, 14)
    )  # MTU_DISCOVER, PMTUDISC_DO, MTU
    asker.setsockopt(level, discover, do)
    with land.narrowed(1300):
        asker.send(bytes(1330))
        deadline = time.monotonic() + 2
        while asker.getsockopt(level, mtu) != 1300:
            assert time.monotonic() < deadline, "the ICMP error did not come back"
            time.sleep(0.01)


def test_wireguards_port_hears_only_its_own_host(land: Landscape) -> None:
    land.apply(land.seed, SEED)
    port = land.udp(land.seed, "0.0.0.0", 51820)
    land.udp(land.workload, "10.50.0.9").sendto(b"from outside", ("10.50.0.1", 51820))
    assert silent(port)
    assert land.counter(land.seed, "not_local") == 1
    land.udp(land.seed, "127.0.0.1").sendto(b"from the relay", ("127.0.0.1", 51820))
    assert port.recv(32) == b"from the relay"


def test_no_packet_slips_through_while_the_table_is_replaced(land: Landscape) -> None:
    land.apply(land.seed, SEED)
    open_port, sender = land.udp(land.seed, "192.168.128.1"), land.udp(land.node, "192.168.128.2")
    answerer = land.udp(land.pod, "10.1.0.9")
    asker = land.udp(land.workload, "10.50.0.9")
    other = replace(SEED, mtu_bytes=1380)
    sent = 0
    for turn in range(25):
        with land.seed.entered():
            nft = subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, text=True)
        assert nft.stdin is not None
        nft.stdin.write(_REPLACE + render(other if turn % 2 else SEED))
        nft.stdin.close()
        while nft.poll() is None:
            sender.sendto(b"?", ("192.168.128.1", land.port))
            sent += 1
            asker.sendto(b"question", ("10.1.0.9", land.port))  # and what may pass goes on passing
            answerer.sendto(b"answer", answerer.recvfrom(16)[1])
            assert asker.recv(16) == b"answer"
        assert nft.returncode == 0
    assert sent > 250
    assert silent(open_port)


@FAMILIES
def test_the_node_opens_only_what_was_granted(land: Landscape, v6: bool) -> None:
    land.apply(land.node, NODE)
    seed, workload, node, pod, service = pick(
        v6,
        *("192.168.128.1", "fd8f::1", "10.50.0.9", "fd50::9", "192.168.128.2", "fd8f::2"),
        *("10.1.0.9", "fd01::9", "10.96.0.1", "fd96::1"),
    )
    (eth0,) = pick(v6, "10.1.0.1", "fd01::1")
    wildcard = "::" if v6 else "0.0.0.0"
    on_pod, on_node = land.listen(land.pod, wildcard), land.listen(land.node, wildcard)

    # A service is granted and its pod is not: what counts is where the packet was sent, not where it is translated to.
    assert talk(land.tcp(land.seed, seed), on_pod, service)[0] == eth0, "masqueraded: the pod sees the node"
    assert talk(land.tcp(land.seed, seed), on_node, node)[0] == seed
    assert land.counter(land.node, "opened") == 2

    refused = [land.tcp(land.seed, seed), land.tcp(land.seed, seed)]
    knock(land.port, refused, [pod, eth0])
    stranger = land.tcp(land.workload, workload)
    knock(land.port, [stranger], [service])
    assert silent(on_pod, on_node, stranger, *refused)
    assert land.counter(land.node, "denied") >= 3


@FAMILIES
def test_pods_of_the_shoot_cannot_be_told_apart_from_their_node_only_where_wanted(land: Landscape, v6: bool) -> None:
    seed, pod = pick(v6, "192.168.128.1", "fd8f::1", "10.1.0.9", "fd01::9")
    on_pod = land.listen(land.pod, "::" if v6 else "0.0.0.0")
    land.apply(land.node, replace(NODE, destinations=networks(*PODS)))
    assert talk(land.tcp(land.seed, seed), on_pod, pod)[0] == seed, "a range outside of `masquerade` keeps its sources"


@FAMILIES
@pytest.mark.parametrize("clamp_on", ["seed", "node"])
def test_tcp_segments_fit_into_the_tunnel_both_ways(land: Landscape, v6: bool, clamp_on: str) -> None:
    workload, pod = pick(v6, "10.50.0.9", "fd50::9", "10.1.0.9", "fd01::9")
    everything = networks("0.0.0.0/0", "::/0")
    wide_open = replace(
        NODE, sources=everything, initiators=everything, destinations=everything, masquerade=frozenset()
    )
    land.apply(land.seed if clamp_on == "seed" else land.node, SEED if clamp_on == "seed" else wide_open)
    client, listener = land.tcp(land.workload, workload), land.listen(land.pod, pod)
    client.connect((pod, land.port))
    served, _ = listener.accept()
    with served:
        largest = 1400 - (60 if v6 else 40) - 12  # less the timestamps' 12 bytes
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == largest
        assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == largest
