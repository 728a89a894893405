"""Finds what this host must reach without the tunnel, for the route guard (`agent.guard`).

Its own addresses, the gateways of the main table, the nameservers, the API server of the cluster it runs in. What only the
configuration knows (the seed server's endpoint, proxies, the seed's ranges) is for the caller to add.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

from agent.errors import HostError
from agent.guard import Protected
from agent.model import IFALIAS_PREFIX, IPAddress
from agent.nlmsg import ROUTE, NetlinkSocket, attributes
from agent.rtnetlink import (
    AF_INET,
    AF_INET6,
    GET_ROUTE,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTMSG,
    address,
    dump_body,
    table_of,
)

_GET_LINK, _GET_ADDRESS = 18, 22
_IFLA_IFNAME, _IFLA_IFALIAS, _IFA_ADDRESS, _IFA_LOCAL = 3, 20, 1, 2
_MAIN_TABLE = 254
_IFINFOMSG = struct.Struct("=BxHiII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTNEXTHOP = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")


def find_protected(
    environ: Mapping[str, str] = os.environ, resolv_conf: Path = Path("/etc/resolv.conf")
) -> tuple[Protected, ...]:
    """Every address of this host's that counts, once, each with its first source. Raises HostError.

    Loopback and link-local addresses are left out: the guard refuses their ranges on every host.
    """
    found: dict[IPAddress, str] = {}
    try:
        for each, source in (*_of_interfaces(), *_of_files(environ, resolv_conf)):
            if not (each.is_loopback or each.is_link_local or each.is_unspecified):
                found.setdefault(each, source)
    except OSError as exc:
        raise HostError(f"cannot find out what this host must reach without the tunnel: {exc}", exc.errno or 0) from exc
    return tuple(Protected(ip_network(each), source) for each, source in found.items())


def _of_interfaces() -> Iterator[tuple[IPAddress, str]]:
    kernel = NetlinkSocket(ROUTE)
    try:
        names = dict(_foreign_links(kernel))
        for body in kernel.dump(_GET_ADDRESS, _IFADDRMSG.pack(0, 0, 0, 0, 0)):
            attrs = attributes(body, _IFADDRMSG.size)
            index = _IFADDRMSG.unpack_from(body)[4]
            own = address(attrs.get(_IFA_LOCAL, attrs.get(_IFA_ADDRESS)))
            if own is not None and index in names:
                yield own, f"own address on {names[index]}"
        for gateway, index in (*_gateways(kernel, AF_INET), *_gateways(kernel, AF_INET6)):
            yield gateway, f"gateway on {names.get(index, 'an interface')}"
    finally:
        kernel.close()


def _gateways(kernel: NetlinkSocket, family: int) -> Iterator[tuple[IPAddress, int]]:
    """Gateways of the main table, each with the index of its interface."""
    try:
        bodies = kernel.dump(GET_ROUTE, dump_body(family, table=_MAIN_TABLE, protocol=0))
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # no IPv6 here
            return
        raise
    for body in bodies:
        attrs = attributes(body, RTMSG.size)
        if table_of(body[4], attrs) != _MAIN_TABLE:
            continue
        hops = [(attrs, _U32.unpack(attrs.get(RTA_OIF, bytes(4)))[0])]
        several = attrs.get(RTA_MULTIPATH, b"")
        while len(several) >= _RTNEXTHOP.size:
            length, _, _, index = _RTNEXTHOP.unpack_from(several)
            hops.append((attributes(several[:length], _RTNEXTHOP.size), index))
            several = several[max((length + 3) & ~3, _RTNEXTHOP.size) :]
        for hop, index in hops:
            if (gateway := address(hop.get(RTA_GATEWAY))) is not None:
                yield gateway, index


def _foreign_links(kernel: NetlinkSocket) -> Iterator[tuple[int, str]]:
    """Index and name of every link that is not a tunnel's."""
    for body in kernel.dump(_GET_LINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        attrs = attributes(body, _IFINFOMSG.size)
        if not attrs.get(_IFLA_IFALIAS, b"").startswith(IFALIAS_PREFIX.encode()):
            yield _IFINFOMSG.unpack_from(body)[2], attrs[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")


def _of_files(environ: Mapping[str, str], resolv_conf: Path) -> Iterator[tuple[IPAddress, str]]:
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        match line.split():
            case ["nameserver", text, *_]:
                yield from _parsed(text, f"nameserver in {resolv_conf}")
    yield from _parsed(
        environ.get("KUBERNETES_SERVICE_HOST", ""), "API server of this cluster, KUBERNETES_SERVICE_HOST"
    )


def _parsed(text: str, source: str) -> Iterator[tuple[IPAddress, str]]:
    """Nothing for what is not an address: a name is resolved by the nameservers, which are protected."""
    try:
        yield ip_address(text.partition("%")[0]), source
    except ValueError:
        return
