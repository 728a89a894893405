"""Watches the kernel for changes of what is ours, made by others: links, addresses, routes, rules, sysctls, the nft table.

Hints, never facts: a hint says "look again". What gives no notification at all (IPv4 routes that vanish with a link going
down, WireGuard's peers, most sysctls) is found at the next look; a link going down is itself notified.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from agent.errors import HostError
from agent.firewall import TABLE
from agent.model import IFALIAS_PREFIX, ROUTE_TABLE
from agent.nlmsg import NETFILTER, ROUTE, Message, attributes, messages, subscribe
from agent.rtnetlink import RTMSG, table_of

log = logging.getLogger("rhizome.netlink")

#: A burst of changes is one hint: it comes when nothing more happened for QUIET_S, at the latest LONGEST_S after the first.
QUIET_S = 0.05
LONGEST_S = 0.25

# Multicast groups: link, addresses, routes, rules and netconf (forwarding, rp_filter) of both families; nftables.
_GROUPS = {ROUTE: (1, 5, 9, 7, 11, 8, 19, 24, 25), NETFILTER: (7,)}
_RECEIVE_BUFFER_BYTES = 8 << 20  # 60,000 route changes in a burst
_RECEIVE_BYTES = 1 << 16
_DATAGRAMS_PER_TURN = 256

_LINK, _ADDRESS, _ROUTE, _RULE, _NETCONF = {16, 17}, {20, 21}, {24, 25}, {32, 33}, {80, 81}
_IFLA_IFNAME, _IFLA_IFALIAS, _FRA_TABLE, _NETCONFA_IFINDEX, _NFTA_TABLE_NAME = 3, 20, 15, 1, 1
_IFINFOMSG_BYTES, _FIB_RULE_HDR_BYTES, _NETCONFMSG_BYTES, _NFGENMSG_BYTES = 16, 12, 4, 4
_NFT_MSG_NEWGEN, _NFPROTO_INET = 15, 1
_INT = struct.Struct("=i")


@dataclass(slots=True)
class Interest:
    """What the watcher takes for ours; kept up to date by whoever looks at the host.

    `names` and `indexes` are the links that were asked for, `ports` the port ids of the sockets we make changes with.
    """

    names: set[str] = field(default_factory=set)
    indexes: set[int] = field(default_factory=set)
    ports: set[int] = field(default_factory=set)


async def changes(interest: Interest) -> AsyncIterator[None]:
    """Yields at once, because nobody knows what happened before, and then after every burst of changes. Raises HostError."""
    loop = asyncio.get_running_loop()
    hint = asyncio.Event()
    hint.set()
    sockets = _subscribe()
    try:
        for protocol, sock in sockets:
            loop.add_reader(sock, _drain, sock, protocol, interest, hint.set)
        while True:
            await hint.wait()
            latest = loop.time() + LONGEST_S
            while hint.is_set() and loop.time() < latest:
                hint.clear()
                await asyncio.sleep(QUIET_S)
            hint.clear()
            yield
    finally:
        for _, sock in sockets:
            loop.remove_reader(sock)
            sock.close()


def _subscribe() -> list[tuple[int, socket.socket]]:
    sockets = []
    for protocol, groups in _GROUPS.items():
        try:
            sockets.append((protocol, subscribe(protocol, groups, _RECEIVE_BUFFER_BYTES)))
        except OSError as exc:
            if protocol == ROUTE:
                raise HostError(f"cannot watch links and routes: {exc}", exc.errno or 0) from exc
            log.info(
                "changes of the firewall will be noticed late, the kernel does not report them: %s",
                exc,
                extra={"event": "firewall.unwatched"},
            )
    return sockets


def _drain(sock: socket.socket, protocol: int, interest: Interest, hint: Callable[[], None]) -> None:
    for _ in range(_DATAGRAMS_PER_TURN):
        try:
            datagram = sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.ENOBUFS:
                raise
            hint()  # notifications were lost; the socket goes on
            continue
        if any(concerns(protocol, message, interest) for message in messages(datagram)):
            hint()


def concerns(protocol: int, message: Message, interest: Interest) -> bool:
    """Whether a notification tells of somebody else's change to something of ours."""
    if message.port in interest.ports:
        return False
    body = message.body
    if protocol == NETFILTER:
        if message.kind & 0xFF == _NFT_MSG_NEWGEN or body[:1] != bytes([_NFPROTO_INET]):
            return False
        # In every message about a table, and about anything in one, the table's name is the first attribute.
        return attributes(body, _NFGENMSG_BYTES).get(_NFTA_TABLE_NAME) == TABLE.encode() + b"\0"
    if message.kind in _LINK:
        found = attributes(body, _IFINFOMSG_BYTES)
        name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        ours = found.get(_IFLA_IFALIAS, b"").startswith(IFALIAS_PREFIX.encode())
        return ours or name in interest.names or _INT.unpack_from(body, 4)[0] in interest.indexes
    if message.kind in _ADDRESS:
        return _INT.unpack_from(body, 4)[0] in interest.indexes
    if message.kind in _ROUTE:
        return table_of(body[4], attributes(body, RTMSG.size)) == ROUTE_TABLE
    if message.kind in _RULE:
        table = attributes(body, _FIB_RULE_HDR_BYTES).get(_FRA_TABLE)
        return table is not None and _INT.unpack(table)[0] == ROUTE_TABLE
    if message.kind in _NETCONF:
        index = attributes(body, _NETCONFMSG_BYTES).get(_NETCONFA_IFINDEX)
        # Negative: of all interfaces, or the default of future ones.
        return index is not None and ((number := _INT.unpack(index)[0]) < 0 or number in interest.indexes)
    return False
