"""One pretend network namespace: links, addresses, routes, rules, sysctls and the nft table, with the kernel's side effects.

`FakeWireGuard` and `FakeNetStack` share one FakeHost, as the real ports share one kernel: a device that one makes, the
other sees, and a device that goes takes its addresses and routes along. The attributes are public on purpose: a test
plays the other programs of the host by changing them, and `touch()` tells the listeners as netlink would.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Interface

from agent.errors import HostError
from agent.model import MTU_MIN_BYTES, IPInterface, IPNetwork, Route

_DEVICE_SYSCTL = re.compile(r"net\.ipv[46]\.(?:conf|neigh)\.(?P<ifname>[^.]+)\.")
_MTU_LOWEST, _MTU_HIGHEST = 68, 2147483552


@dataclass(slots=True)
class FakeLink:
    """`kind` is what rtnetlink calls IFLA_INFO_KIND: wireguard, tun, veth, ..."""

    kind: str
    mtu_bytes: int = 1420
    up: bool = False
    alias: str = ""
    addresses: set[IPInterface] = field(default_factory=set)


def refuse(code: int, what: str) -> HostError:
    """The error a system call would make of `code`."""
    return HostError(f"{what}: {os.strerror(code)}", code)


class FakeHost:
    """The kernel's tables. `routes` is our routing table, keyed as the kernel keys it: destination and metric.

    `firewall` is the text of our nft table, None when there is none, "" when somebody changed it.
    """

    def __init__(self) -> None:
        self.links: dict[str, FakeLink] = {}
        self.routes: dict[tuple[IPNetwork, int], Route] = {}
        self.rules: set[int] = set()
        self.sysctls: dict[str, str] = {}
        self.firewall: str | None = None
        self.counters: dict[str, int] = {}
        self.listeners: list[Callable[[], None]] = []

    def touch(self) -> None:
        """Tell every listener that something changed, as a netlink notification would."""
        for listener in tuple(self.listeners):
            listener()

    def link(self, ifname: str) -> FakeLink:
        """Raises HostError(ENODEV)."""
        if ifname not in self.links:
            raise refuse(errno.ENODEV, ifname)
        return self.links[ifname]

    def add_link(self, ifname: str, kind: str, mtu_bytes: int = 1420, alias: str = "") -> FakeLink:
        """Raises HostError(EEXIST). A new link is down."""
        if ifname in self.links:
            raise refuse(errno.EEXIST, ifname)
        self.links[ifname] = FakeLink(kind, mtu_bytes, alias=alias)
        self.touch()
        return self.links[ifname]

    def delete_link(self, ifname: str) -> None:
        """Takes addresses, routes and the link's sysctls along. Raises HostError(ENODEV)."""
        self.link(ifname)
        del self.links[ifname]
        self._drop_routes(lambda route: route.ifname == ifname)
        for key in [key for key in self.sysctls if _sysctl_ifname(key) == ifname]:
            del self.sysctls[key]
        self.touch()

    def set_mtu(self, ifname: str, mtu_bytes: int) -> None:
        """Below 1280 the kernel deletes the link's IPv6 addresses and routes. Raises HostError(EINVAL, ENODEV)."""
        link = self.link(ifname)
        if not _MTU_LOWEST <= mtu_bytes <= _MTU_HIGHEST:
            raise refuse(errno.EINVAL, f"{ifname}: mtu {mtu_bytes}")
        link.mtu_bytes = mtu_bytes
        if mtu_bytes < MTU_MIN_BYTES:
            self._end_ipv6(ifname)
        self.touch()

    def set_up(self, ifname: str, up: bool) -> None:
        """Down deletes the link's IPv4 routes, its IPv6 addresses and its IPv6 routes; up brings none of them back.

        A TUN gets a link-local address when it comes up; a WireGuard device does not.
        """
        link = self.link(ifname)
        if up and not link.up and link.kind == "tun" and link.mtu_bytes >= MTU_MIN_BYTES:
            link.addresses.add(IPv6Interface((0xFE80 << 112 | len(self.links), 64)))
        if not up and link.up:
            self._drop_routes(lambda route: route.ifname == ifname)
            self._end_ipv6(ifname)
        link.up = up
        self.touch()

    def add_address(self, ifname: str, address: IPInterface) -> None:
        """Raises HostError(EEXIST, ENODEV; EINVAL for IPv6 on a link whose MTU is below 1280)."""
        link = self.link(ifname)
        if address.version == 6 and link.mtu_bytes < MTU_MIN_BYTES:
            raise refuse(errno.EINVAL, f"{ifname}: {address}")
        if address in link.addresses:
            raise refuse(errno.EEXIST, f"{ifname}: {address}")
        link.addresses.add(address)
        self.touch()

    def delete_address(self, ifname: str, address: IPInterface) -> None:
        """IPv4 routes with this source go with it, and with the link's last IPv4 address all its IPv4 routes; IPv6 routes
        only lose their source. Raises HostError(EADDRNOTAVAIL, ENODEV)."""
        link = self.link(ifname)
        if address not in link.addresses:
            raise refuse(errno.EADDRNOTAVAIL, f"{ifname}: {address}")
        link.addresses.remove(address)
        self._drop_source(address)
        if address.version == 4 and not any(other.version == 4 for other in link.addresses):
            self._drop_routes(lambda route: route.ifname == ifname and route.dst.version == 4)
        self.touch()

    def replace_route(self, route: Route) -> None:
        """Raises HostError: ENODEV, ENETDOWN, or EINVAL for a source that is nobody's address."""
        link = self.link(route.ifname)
        if not link.up:
            raise refuse(errno.ENETDOWN, f"route {route.dst}")
        local = {address.ip for other in self.links.values() for address in other.addresses}
        if route.source is not None and route.source not in local:
            raise refuse(errno.EINVAL, f"route {route.dst} src {route.source}")
        self.routes[(route.dst, route.metric)] = route
        self.touch()

    def delete_route(self, route: Route) -> None:
        """Raises HostError(ESRCH)."""
        have = self.routes.get((route.dst, route.metric))
        if have is None or have.ifname != route.ifname:
            raise refuse(errno.ESRCH, f"route {route.dst}")
        del self.routes[(route.dst, route.metric)]
        self.touch()

    def add_rule(self, family: int) -> None:
        """Raises HostError(EEXIST)."""
        if family in self.rules:
            raise refuse(errno.EEXIST, f"rule of IPv{family}")
        self.rules.add(family)
        self.touch()

    def delete_rule(self, family: int) -> None:
        """Raises HostError(ENOENT)."""
        if family not in self.rules:
            raise refuse(errno.ENOENT, f"rule of IPv{family}")
        self.rules.remove(family)
        self.touch()

    def set_sysctl(self, key: str, value: str) -> None:
        """Raises HostError(ENOENT) for a key of a link that does not exist."""
        ifname = _sysctl_ifname(key)
        if ifname is not None and ifname not in self.links:
            raise refuse(errno.ENOENT, key)
        self.sysctls[key] = value
        self.touch()

    def set_firewall(self, text: str | None) -> None:
        self.firewall = text
        self.touch()

    def _drop_routes(self, match: Callable[[Route], bool]) -> None:
        self.routes = {key: route for key, route in self.routes.items() if not match(route)}

    def _end_ipv6(self, ifname: str) -> None:
        link = self.links[ifname]
        self._drop_routes(lambda route: route.ifname == ifname and route.dst.version == 6)
        for address in [address for address in link.addresses if address.version == 6]:
            link.addresses.remove(address)
            self._drop_source(address)

    def _drop_source(self, address: IPInterface) -> None:
        if any(address.ip == other.ip for link in self.links.values() for other in link.addresses):
            return
        if address.version == 4:
            self._drop_routes(lambda route: route.source == address.ip)
            return
        for key, route in self.routes.items():
            if route.source == address.ip:
                self.routes[key] = replace(route, source=None)


def _sysctl_ifname(key: str) -> str | None:
    """The link a dotted sysctl key belongs to; None for one of all, of default, or of no link at all."""
    match = _DEVICE_SYSCTL.match(key)
    if match is None or match["ifname"] in ("all", "default"):
        return None
    return match["ifname"].replace("/", ".")
