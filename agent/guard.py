"""The route guard: which prefixes may never be routed into the tunnel, and why not, in words.

Our rule stands before the main table, so a route of ours wins over every route of the host. A prefix that contains the
pod's own gateway or the tunnel's own endpoint would therefore cut the host off. The prefixes come from the other side of
the wire or from a configuration file; both are to be mistrusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from agent.model import IPNetwork

#: A prefix shorter than this is no cluster's range but an attempt at (part of) a default route.
SHORTEST_V4 = 8
SHORTEST_V6 = 16


class Reason(Enum):
    DEFAULT_ROUTE = "default_route"
    TOO_WIDE = "too_wide"
    SPECIAL = "special"  #: loopback, link-local and the like: means something else on every host
    CAPTURES = "captures"  #: contains, or lies in, something this host must reach without the tunnel


@dataclass(frozen=True, slots=True)
class Protected:
    """Something this host must reach without the tunnel. `source` says where it is known from: "gateway of eth0"."""

    network: IPNetwork
    source: str

    def __str__(self) -> str:
        return f"{self.network} ({self.source})"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A prefix that must not be routed into the tunnel. `conflicts` is empty for DEFAULT_ROUTE and TOO_WIDE."""

    network: IPNetwork
    reason: Reason
    conflicts: tuple[Protected, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(map(str, self.conflicts[:3]))
        named += f" and {len(self.conflicts) - 3} more" if len(self.conflicts) > 3 else ""
        match self.reason:
            case Reason.DEFAULT_ROUTE:
                why = "it is a default route and would take this host off its network; name the ranges that are meant"
            case Reason.TOO_WIDE:
                why = "it is as wide as a part of the internet; name the ranges that are really in use"
            case Reason.SPECIAL:
                why = f"it overlaps {named}, which no tunnel can carry; remove it from the ranges"
            case Reason.CAPTURES:
                why = f"it would capture {named}; name ranges that leave it out"
        return f"route {self.network} refused: {why}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`allowed` and `refused` together are the routes that were asked for, each in the order of asking."""

    allowed: tuple[IPNetwork, ...]
    refused: tuple[Refusal, ...]


#: Never routable, on any host (RFC 6890, RFC 4291). The narrower entry stands first, so that it is the one named first.
SPECIAL: tuple[Protected, ...] = (
    Protected(IPv4Network("169.254.169.254/32"), "the cloud's metadata service"),
    Protected(IPv4Network("169.254.0.0/16"), "link-local"),
    Protected(IPv4Network("0.0.0.0/8"), "this host, unspecified"),
    Protected(IPv4Network("127.0.0.0/8"), "loopback"),
    Protected(IPv4Network("255.255.255.255/32"), "broadcast"),
    Protected(IPv4Network("224.0.0.0/4"), "multicast"),
    Protected(IPv6Network("fd00:ec2::254/128"), "the cloud's metadata service"),
    Protected(IPv6Network("::/128"), "unspecified"),
    Protected(IPv6Network("::1/128"), "loopback"),
    Protected(IPv6Network("::ffff:0:0/96"), "IPv4-mapped addresses"),
    Protected(IPv6Network("fe80::/10"), "link-local"),
    Protected(IPv6Network("ff00::/8"), "multicast"),
)


def guard_routes(
    routes: Iterable[IPNetwork],
    protected: Iterable[Protected],
    *,
    shortest_v4: int = SHORTEST_V4,
    shortest_v6: int = SHORTEST_V6,
) -> Verdict:
    """Sort `routes` into those that may be routed into the tunnel and those that must not be.

    A route conflicts with a protected network when they share any address. `shortest_v4` and `shortest_v6` are the
    shortest prefix lengths that pass; 0 or 1 still refuses a default route.
    """
    shortest = {4: shortest_v4, 6: shortest_v6}
    special, own = _Overlaps(SPECIAL), _Overlaps(protected)
    allowed: list[IPNetwork] = []
    refused: list[Refusal] = []
    for route in routes:
        if route.prefixlen == 0:
            refused.append(Refusal(route, Reason.DEFAULT_ROUTE))
        elif route.prefixlen < shortest[route.version]:
            refused.append(Refusal(route, Reason.TOO_WIDE))
        elif conflicts := special.with_(route):
            refused.append(Refusal(route, Reason.SPECIAL, conflicts))
        elif conflicts := own.with_(route):
            refused.append(Refusal(route, Reason.CAPTURES, conflicts))
        else:
            allowed.append(route)
    return Verdict(tuple(allowed), tuple(refused))


class _Overlaps:
    """Finds overlaps by comparing integers: thousands of routes meet dozens of protected networks."""

    def __init__(self, protected: Iterable[Protected]) -> None:
        self._bounds: dict[int, list[tuple[int, int, Protected]]] = {4: [], 6: []}
        for item in protected:
            first, last = _bounds(item.network)
            self._bounds[item.network.version].append((first, last, item))

    def with_(self, route: IPNetwork) -> tuple[Protected, ...]:
        first, last = _bounds(route)
        return tuple(item for low, high, item in self._bounds[route.version] if low <= last and first <= high)


def _bounds(network: IPNetwork) -> tuple[int, int]:
    first = int(network.network_address)
    return first, first | ((1 << (network.max_prefixlen - network.prefixlen)) - 1)
