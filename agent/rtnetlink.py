"""Routes as rtnetlink messages (linux/rtnetlink.h), only those of our table and protocol. Pure: values in, bytes out, and back.

What the kernel does with a zero here differs by family: an IPv6 route without a metric gets 1024, so 1024 is read back as 0
(and a wanted metric of 1024 would never be seen as reached).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from agent.model import ROUTE_PROTOCOL, ROUTE_TABLE, IPAddress, IPNetwork, Route
from agent.nlmsg import F_CREATE, F_REPLACE, Request, attribute, attributes

NEW_ROUTE, DEL_ROUTE, GET_ROUTE = 24, 25, 26
AF_INET, AF_INET6 = 2, 10

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 7, 9, 15
_RTA_METRICS, _RTA_VIA, _RTA_ENCAP, _RTA_NH_ID = 8, 18, 22, 30
#: We never set these: a route that has one is ours by its protocol number, but somebody changed it.
_FOREIGN = frozenset({RTA_GATEWAY, _RTA_METRICS, RTA_MULTIPATH, _RTA_VIA, _RTA_ENCAP, _RTA_NH_ID})

_ANY_TYPE, _UNICAST = 0, 1
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_DEFAULT_METRIC_V6 = 1024

#: Family, destination length, source length, TOS, table, protocol, scope, type, flags.
RTMSG = struct.Struct("=BBBBBBBBI")
_U32 = struct.Struct("=I")
_TABLE_ATTRIBUTE = attribute(RTA_TABLE, _U32.pack(ROUTE_TABLE))
_COMPAT_TABLE = 252  # RT_TABLE_COMPAT, for table numbers that do not fit into a byte


def replace_request(route: Route, ifindex: int) -> Request:
    """Add the route, or change the one of the same destination and metric in place."""
    body = _rtmsg(route.dst, _SCOPE_LINK if route.dst.version == 4 else _SCOPE_UNIVERSE, _UNICAST)
    body += attribute(RTA_OIF, _U32.pack(ifindex))
    if route.metric:
        body += attribute(RTA_PRIORITY, _U32.pack(route.metric))
    if route.source is not None:
        body += attribute(RTA_PREFSRC, route.source.packed)
    return Request(NEW_ROUTE, F_REPLACE | F_CREATE, body)


def delete_request(route: Route, ifindex: int | None) -> Request:
    """Delete the route of this destination, metric and device; `ifindex=None`: whatever device, gateway or type it has."""
    body = _rtmsg(route.dst, _SCOPE_NOWHERE, _ANY_TYPE)  # of any scope: "universe" would not find a route of scope link
    if ifindex is not None:
        body += attribute(RTA_OIF, _U32.pack(ifindex))
    metric = route.metric or (_DEFAULT_METRIC_V6 if route.dst.version == 6 else 0)
    if metric:
        body += attribute(RTA_PRIORITY, _U32.pack(metric))
    return Request(DEL_ROUTE, 0, body)


def dump_body(family: int, table: int = ROUTE_TABLE, protocol: int = ROUTE_PROTOCOL) -> bytes:
    """Body of the dump request for one table; with strict checking the kernel filters. `protocol=0`: of any."""
    return RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + attribute(RTA_TABLE, _U32.pack(table))


def decode(body: bytes, ifname: Callable[[int], str]) -> Route | None:
    """The route of a listing's message; None for one that is not of our table and protocol, or by its shape cannot be ours.

    A route that has our marks but does not simply lead through a device (a gateway, a metric, "unreachable") is shown
    with an empty `ifname`: it equals nothing that we want, so it is repaired. `ifname` names an interface by its index.
    """
    family, prefixlen, source_length, tos, table, protocol, _, kind, _ = RTMSG.unpack_from(body)
    found = attributes(body, RTMSG.size)
    if table_of(table, found) != ROUTE_TABLE or protocol != ROUTE_PROTOCOL or source_length or tos:
        return None
    simple = kind == _UNICAST and RTA_OIF in found and not _FOREIGN & found.keys()
    metric = _u32(found.get(RTA_PRIORITY))
    return Route(
        dst=network(family, found.get(RTA_DST), prefixlen),
        ifname=ifname(_u32(found[RTA_OIF])) if simple else "",
        source=address(found.get(RTA_PREFSRC)),
        metric=0 if family == AF_INET6 and metric == _DEFAULT_METRIC_V6 else metric,
    )


def table_of(short: int, found: dict[int, bytes]) -> int:
    """The table of a route message; its one-byte header field is too small for most."""
    return _u32(found[RTA_TABLE]) if RTA_TABLE in found else short


def network(family: int, packed: bytes | None, prefixlen: int) -> IPNetwork:
    """None is the address that the kernel leaves out: all zeros."""
    if family == AF_INET:
        return IPv4Network((packed or bytes(4), prefixlen))
    return IPv6Network((packed or bytes(16), prefixlen))


def address(packed: bytes | None) -> IPAddress | None:
    if packed is None:
        return None
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _u32(payload: bytes | None) -> int:
    value: int = _U32.unpack(payload)[0] if payload is not None else 0
    return value


def _rtmsg(dst: IPNetwork, scope: int, kind: int) -> bytes:
    family = AF_INET if dst.version == 4 else AF_INET6
    head = RTMSG.pack(family, dst.prefixlen, 0, 0, _COMPAT_TABLE, ROUTE_PROTOCOL, scope, kind, 0)
    return head + attribute(RTA_DST, dst.network_address.packed) + _TABLE_ATTRIBUTE
