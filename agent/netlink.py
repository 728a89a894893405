"""The NetStack of a real Linux host: links, addresses and rules by pyroute2, routes in bulk by our own codec.

Not everything that pyroute2 does is what one wants: it does not notice interrupted dumps, so these are recognised here by
their flag and repeated; it runs one dump at a time, hence the lock; its event sockets die of an overflow, so notifications
are received elsewhere (`agent.changes`); and it sets 3,000 routes a second where a batch sets 75,000.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_interface
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent import rtnetlink, sysctl
from agent.changes import Interest, changes
from agent.errors import HostError, RhizomeError, Unsupported
from agent.host import (
    AddAddress,
    AddRoute,
    AddRule,
    DelAddress,
    DelRoute,
    DelRule,
    NetStep,
    SetFirewall,
    SetLink,
    SetSysctl,
)
from agent.model import (
    FWMARK,
    FWMARK_MASK,
    IFALIAS_PREFIX,
    ROUTE_PROTOCOL,
    ROUTE_TABLE,
    RULE_PRIORITY,
    IPInterface,
    LinkState,
    NetState,
    Route,
)
from agent.nft import Nft
from agent.nlmsg import F_DUMP_INTR, ROUTE, NetlinkSocket, Request

_IFF_UP = 1
_IFA_F_NODAD = 2  # the address is ours alone: usable at once, as a preferred source too
_FIB_RULE_INVERT = 2
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_FAMILY = {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}  # a kernel without IPv6
_DUMP_ATTEMPTS = 20
_ROUTES_PER_BATCH = 200  # more in one datagram gains nothing, and each batch holds up the event loop for 3 ms

_RULE: dict[str, int] = {
    "priority": RULE_PRIORITY,
    "table": ROUTE_TABLE,
    "protocol": ROUTE_PROTOCOL,
    "fwmark": FWMARK,
    "fwmask": FWMARK_MASK,
    "flags": _FIB_RULE_INVERT,
}


class LinuxNetStack:
    """`agent.host.NetStack` for the network namespace of this process; an async context manager that holds the sockets.

    A batch that fails stops at the failing step, except that up to 199 routes after a failing one may have been set too.
    """

    def __init__(self) -> None:
        self._interest = Interest()
        self._nft = Nft(self._interest.ports)
        self._dumping = asyncio.Lock()
        self._ipr: Any = None
        self._routes: NetlinkSocket | None = None

    async def __aenter__(self) -> Self:
        try:
            self._ipr = AsyncIPRoute(ext_ack=True, strict_check=True)
            self._ipr.socket.bind((0, 0))  # now, so that its port is known before its first change
            self._routes = NetlinkSocket(ROUTE)
        except OSError as exc:
            await self.close()
            raise HostError(f"cannot open a netlink socket: {exc}", exc.errno or 0) from exc
        self._interest.ports |= {self._routes.port, self._ipr.getsockname()[0]}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._nft.close()
        if self._routes is not None:
            self._routes.close()
        if self._ipr is not None:
            self._ipr.close()

    async def read(
        self, ifnames: Sequence[str] | None, sysctls: Sequence[str] = (), firewall: str | None = None
    ) -> NetState:
        try:
            links = await self._read_links(ifnames)
            rules = frozenset([family for family in _FAMILIES if any(map(_is_rule, await self._our_rules(family)))])
            routes = frozenset(self._read_routes())
        except (NetlinkError, OSError) as exc:
            raise _translated("cannot look at links, addresses, rules and routes", exc) from exc
        values = ((key, sysctl.read(key)) for key in sysctls)
        return NetState(
            links=links,
            routes=routes,
            rules=rules,
            firewall=await self._nft.read(firewall),
            sysctls=frozenset((key, value) for key, value in values if value is not None),
        )

    async def apply(self, steps: Sequence[NetStep]) -> None:
        for of_routes, group in itertools.groupby(steps, lambda step: isinstance(step, AddRoute | DelRoute)):
            if of_routes:
                await self._apply_routes([step for step in group if isinstance(step, AddRoute | DelRoute)])
                continue
            for step in group:
                try:
                    await self._apply(step)
                except (NetlinkError, OSError) as exc:
                    raise _translated(str(step), exc) from exc

    def changes(self) -> AsyncIterator[None]:
        return changes(self._interest)

    def firewall_counters(self) -> dict[str, int]:
        """Packets by the names of `agent.firewall.COUNTERS`, since the table was last applied."""
        return self._nft.counters()

    async def _read_links(self, ifnames: Sequence[str] | None) -> tuple[tuple[str, LinkState], ...]:
        if ifnames is None:
            found = [m for m in await self._dump("link") if (m.get("ifalias") or "").startswith(IFALIAS_PREFIX)]
        else:
            self._interest.names.update(ifnames)
            found = [m for name in dict.fromkeys(ifnames) if (m := await self._get_link(name)) is not None]
        self._interest.indexes |= {message["index"] for message in found}
        links = {}
        for message in found:
            addresses = await self._addresses(message["index"])
            links[message.get("ifname")] = LinkState(
                mtu_bytes=message.get("mtu"),
                up=bool(message["flags"] & _IFF_UP),
                alias=message.get("ifalias") or "",
                addresses=addresses,
            )
        return tuple(sorted(links.items(), key=lambda item: item[0]))

    async def _get_link(self, ifname: str) -> Any | None:
        try:
            (message,) = await self._ipr.link("get", ifname=ifname)
        except NetlinkError as exc:
            if exc.code == errno.ENODEV:
                return None
            raise
        return message

    async def _addresses(self, index: int) -> frozenset[IPInterface]:
        """Empty when there is no such link any more."""
        try:
            found = await self._dump("addr", index=index)
        except NetlinkError as exc:
            if exc.code == errno.ENODEV:
                return frozenset()
            raise
        # Between two ends of a point-to-point link, IFA_LOCAL is ours and IFA_ADDRESS the other's.
        return frozenset(ip_interface((m.get("local") or m.get("address"), m["prefixlen"])) for m in found)

    async def _our_rules(self, family: int) -> list[Any]:
        try:
            found = await self._dump("rule", family=_FAMILIES[family])
        except NetlinkError as exc:
            if exc.code in _NO_FAMILY:
                return []
            raise
        return [m for m in found if m.get("protocol") == ROUTE_PROTOCOL and m.get("table") == ROUTE_TABLE]

    async def _dump(self, kind: str, **match: int) -> list[Any]:
        """All objects of a kind, seen at one moment. Raises NetlinkError, or OSError if that moment never came."""
        async with self._dumping:
            for _ in range(_DUMP_ATTEMPTS):
                found = [message async for message in await getattr(self._ipr, kind)("dump", **match)]
                if not any(message["header"]["flags"] & F_DUMP_INTR for message in found):
                    return found
        raise OSError(errno.EAGAIN, f"{kind}: changed during each of {_DUMP_ATTEMPTS} looks; what keeps writing to it?")

    def _read_routes(self) -> list[Route]:
        assert self._routes is not None, "entered"
        name_of = functools.cache(_name)
        routes = []
        for family in _FAMILIES.values():
            try:
                bodies = self._routes.dump(rtnetlink.GET_ROUTE, rtnetlink.dump_body(family))
            except OSError as exc:
                if exc.errno == errno.ENOENT or exc.errno in _NO_FAMILY:  # nothing was ever put into our table
                    continue
                raise
            routes += [route for body in bodies if (route := rtnetlink.decode(body, name_of)) is not None]
        return routes

    async def _apply(self, step: NetStep) -> None:
        match step:
            case AddAddress(ifname, address):
                await self._add_address(_index(ifname), address)
            case DelAddress(ifname, address):
                await self._delete_address(ifname, address)
            case SetLink(ifname, mtu_bytes, up, alias):
                state = None if up is None else "up" if up else "down"
                wanted = {"mtu": mtu_bytes, "state": state, "ifalias": alias}
                changed = {key: value for key, value in wanted.items() if value is not None}
                await self._ipr.link("set", index=_index(ifname), **changed)
            case AddRule(family):
                await self._add_rule(family)
            case DelRule(family):
                for message in await self._our_rules(family):
                    await self._delete_rule(family, message)
            case SetSysctl(key, value):
                sysctl.write(key, value)
            case SetFirewall(text):
                await self._nft.apply(text)

    async def _add_address(self, index: int, address: IPInterface) -> None:
        wanted = {"index": index, "address": str(address.ip), "prefixlen": address.network.prefixlen}
        flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
        try:
            await self._ipr.addr("add", **wanted, **flags)
        except NetlinkError as exc:
            if exc.code != errno.EEXIST:
                raise
            # To IPv6 an address with another prefix length is the same one.
            for other in await self._addresses(index):
                if other.ip == address.ip and other != address and address.version == 6:
                    await self._ipr.addr("del", **{**wanted, "prefixlen": other.network.prefixlen})
                    await self._ipr.addr("add", **wanted, **flags)

    async def _delete_address(self, ifname: str, address: IPInterface) -> None:
        try:
            prefixlen = address.network.prefixlen
            await self._ipr.addr("del", index=_index(ifname), address=str(address.ip), prefixlen=prefixlen)
        except (NetlinkError, OSError) as exc:
            if _code(exc) not in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO):
                raise

    async def _add_rule(self, family: int) -> None:
        # The kernel takes rules for equal that differ in "not" only, so one that another version of us made goes first.
        for message in await self._our_rules(family):
            if not _is_rule(message):
                await self._delete_rule(family, message)
        try:
            await self._ipr.rule("add", family=_FAMILIES[family], **_RULE)
        except NetlinkError as exc:
            if exc.code != errno.EEXIST:
                raise

    async def _delete_rule(self, family: int, message: Any) -> None:
        found = {key: message.get(key) for key in ("priority", "table", "protocol", "fwmark", "fwmask")}
        wanted = {key: value for key, value in found.items() if value is not None}
        try:
            await self._ipr.rule("del", family=_FAMILIES[family], flags=message["flags"], **wanted)
        except NetlinkError as exc:
            if exc.code != errno.ENOENT:
                raise

    async def _apply_routes(self, steps: Sequence[AddRoute | DelRoute]) -> None:
        assert self._routes is not None, "entered"
        index_of = functools.cache(_index)
        for start in range(0, len(steps), _ROUTES_PER_BATCH):
            sent, requests = [], []
            for step in steps[start : start + _ROUTES_PER_BATCH]:
                try:
                    request = _route_request(step, index_of)
                except OSError as exc:
                    if isinstance(step, DelRoute):  # the device took the route along
                        continue
                    raise _translated(str(step), exc) from exc
                sent.append(step)
                requests.append(request)
            try:
                refused = self._routes.exchange(requests)
            except OSError as exc:
                raise _translated(str(sent[0]), exc) from exc
            for position, error in refused.items():
                if not (isinstance(sent[position], DelRoute) and error.errno == errno.ESRCH):
                    raise _translated(str(sent[position]), error) from error
            await asyncio.sleep(0)


def _route_request(step: AddRoute | DelRoute, index_of: Callable[[str], int]) -> Request:
    route = step.route
    if isinstance(step, AddRoute):
        return rtnetlink.replace_request(route, index_of(route.ifname))
    return rtnetlink.delete_request(route, index_of(route.ifname) if route.ifname else None)


def _is_rule(message: Any) -> bool:
    """Whether a rule of ours is the one we would make now."""
    plain = not (message["src_len"] or message["dst_len"] or message["tos"])
    return plain and all((message["flags"] if key == "flags" else message.get(key)) == _RULE[key] for key in _RULE)


def _index(ifname: str) -> int:
    """Raises OSError(ENODEV)."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError as exc:
        raise OSError(errno.ENODEV, f"there is no interface {ifname}") from exc


def _name(index: int) -> str:
    """Empty for an interface that is gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _code(exc: NetlinkError | OSError) -> int:
    """The positive errno."""
    code: int | None = exc.code if isinstance(exc, NetlinkError) else exc.errno
    return abs(code or 0)


def _translated(what: str, exc: NetlinkError | OSError) -> RhizomeError:
    code = _code(exc)
    if code == errno.EPERM:
        return Unsupported(f"{what}: not permitted; give this process CAP_NET_ADMIN")
    words = exc.args[1] if len(exc.args) > 1 else str(exc)
    return HostError(f"{what}: {words} ({errno.errorcode.get(code, code)})", code)
