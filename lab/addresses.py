"""The lab's map: who is where, and every address range in use. Pure data.

    seed               net = the internet                          nat                 node 1               pod 1
 +----------+      +--------------------------+  may be    +--------------+       +----------------+    +--------------+
 |rhizome-  |      | proxy  198.51.100.10     |  impaired  |masquerades   |       |rhizome-        |    |web and echo  |
 |seed-     |      | DNS    198.51.100.53     |    or      |what goes out,|       |shoot-client,   |    |servers       |
 |server    |      | routes to no shoot range |  blocked   |drops what    |       |web and echo    |    |              |
 |          |      |                          |            |comes in      |       |servers; drops  |    |              |
 |     eth0 +------+ seed0               wan0 +------------+ wan0    lan0 +-------+ eth0  all that |    |              |
 |       .2 |      | .1                    .1 |            | .2        .1 |       | .11   comes in |    |              |
 +----------+      +--------------------------+            +--------------+       |           pod0 +----+ eth0         |
                                                                                  |             .1 |    |   .2         |
                                                                                  +----------------+    +--------------+
  seed pod network       the internet                       shoot node network      shoot pod network     service network
  10.10.0.0/24           198.51.100.0/24                    10.30.0.0/24            10.40.0.0/16          10.50.0.0/24
  fd00:10::/64           2001:db8:100::/64                  fd00:30::/64            fd00:40::/32          fd00:50::/112

A second node is node 2: 10.30.0.12 with pod 10.40.2.2, and so on. Other pods of the seed, when a lab has some, are 10.10.0.11,
10.10.0.12 and so on, on one bridge with the seed server's. The service 10.50.0.10 lives nowhere: each node rewrites
it to its own pod, as kube-proxy would. The tunnel network is the product's default, 192.168.128.0/17 and
fd8f:6d53:b97a:1::/96. No range overlaps another (a test checks), and the three shoot ranges have no route outside the shoot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Family = Literal[4, 6]

SEED_PODS = ("10.10.0.0/24", "fd00:10::/64")
INTERNET = ("198.51.100.0/24", "2001:db8:100::/64")
SHOOT_NODES = ("10.30.0.0/24", "fd00:30::/64")
SHOOT_PODS = ("10.40.0.0/16", "fd00:40::/32")
SHOOT_SERVICES = ("10.50.0.0/24", "fd00:50::/112")
TUNNEL = ("192.168.128.0/17", "fd8f:6d53:b97a:1::/96")

#: In DNS, and in the server's certificate. Behind an SNI proxy it resolves to the proxy.
SERVER_NAME = "vpn.shoot--demo.seed.test"
#: In DNS; the address of a CONNECT proxy.
PROXY_NAME = "proxy.seed.test"
#: The trust domain of all certificates.
CONTROL_PLANE = "shoot--demo"
#: Where the seed server listens, and every SNI proxy.
SERVER_PORT = 443

HTTP_PORT = 8080  # on nodes and pods
ECHO_PORT = 7007  # TCP and UDP, on nodes and pods
BULK_PORT = 7009  # TCP, on nodes and pods
HTTPS_PORT = 8443  # on pods, where a test puts a server: lab.kube does
SERVICE_PORTS = ((80, HTTP_PORT), (443, HTTPS_PORT), (ECHO_PORT, ECHO_PORT), (BULK_PORT, BULK_PORT))


@dataclass(frozen=True, slots=True)
class Pair:
    """One host's two addresses. `str()` is the IPv4 one."""

    v4: str
    v6: str

    def __getitem__(self, family: Family) -> str:
        return self.v4 if family == 4 else self.v6

    def __iter__(self) -> Iterator[str]:
        return iter((self.v4, self.v6))

    def __str__(self) -> str:
        return self.v4


@dataclass(frozen=True, slots=True)
class Target:
    """Something in a shoot that the seed wants to reach: what it is, its addresses and its web port."""

    name: str
    address: Pair
    http_port: int
    answers_ping: bool

    def url(self, family: Family = 4) -> str:
        host = self.address[family]
        return f"http://[{host}]:{self.http_port}/" if family == 6 else f"http://{host}:{self.http_port}/"


SEED = Pair("10.10.0.2", "fd00:10::2")
SEED_GATEWAY = Pair("10.10.0.1", "fd00:10::1")
NET = Pair("198.51.100.1", "2001:db8:100::1")
PROXY = Pair("198.51.100.10", "2001:db8:100::10")
DNS = Pair("198.51.100.53", "2001:db8:100::53")
NAT_OUTSIDE = Pair("198.51.100.2", "2001:db8:100::2")
NAT_OUTSIDE_SPARE = Pair("198.51.100.3", "2001:db8:100::3")
NAT_INSIDE = Pair("10.30.0.1", "fd00:30::1")
SERVICE = Pair("10.50.0.10", "fd00:50::10")


def seed_pod(index: int) -> Pair:
    """Address of the seed's pod `index`, which counts from 1. The seed server has a pod of its own, SEED."""
    return Pair(f"10.10.0.{10 + index}", f"fd00:10::{10 + index}")


def node(index: int) -> Pair:
    """Address of node `index`, which counts from 1."""
    return Pair(f"10.30.0.{10 + index}", f"fd00:30::{10 + index}")


def spare_node(index: int) -> Pair:
    """The address that node `index` moves to when its own is taken away."""
    return Pair(f"10.30.0.{100 + index}", f"fd00:30::{100 + index}")


def pod_network(index: int) -> Pair:
    return Pair(f"10.40.{index}.0/24", f"fd00:40:{index}::/64")


def pod_gateway(index: int) -> Pair:
    return Pair(f"10.40.{index}.1", f"fd00:40:{index}::1")


def pod(index: int) -> Pair:
    return Pair(f"10.40.{index}.2", f"fd00:40:{index}::2")


def targets(index: int = 1) -> tuple[Target, Target, Target]:
    """The three kinds of things a kube-apiserver wants to reach, on node `index`. A service answers no ping."""
    return (
        Target("node", node(index), HTTP_PORT, answers_ping=True),
        Target("pod", pod(index), HTTP_PORT, answers_ping=True),
        Target("service", SERVICE, 80, answers_ping=False),
    )
