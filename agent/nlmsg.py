"""Netlink messages and attributes (linux/netlink.h), and a socket that exchanges them in bulk.

pyroute2 does this too, a message at a time and 20 times slower; what it cannot do is batches, and noticing a dump that
was interrupted. Only the standard library is used here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROUTE, NETFILTER = 0, 12  # protocols of AF_NETLINK

ERROR, DONE = 2, 3  # message types
F_REQUEST, F_ACK, F_DUMP_INTR, F_CAPPED, F_ACK_TLVS = 0x01, 0x04, 0x10, 0x100, 0x200
F_REPLACE, F_CREATE, F_DUMP = 0x100, 0x400, 0x300

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 1, 10, 11, 12
_SO_RCVBUFFORCE = 33  # not in the socket module
_ACK_TEXT = 1  # NLMSGERR_ATTR_MSG
_TYPE_MASK = 0x3FFF

_INT = struct.Struct("=i")
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 1 << 16  # the kernel's dump messages have at most 32 KiB
_TIMEOUT_S = 30.0
_DUMP_ATTEMPTS = 20


class Message(NamedTuple):
    """`port` is the port id of the socket whose request caused it, 0 for the kernel's own doings."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


class Request(NamedTuple):
    """F_REQUEST and F_ACK are added to `flags`."""

    kind: int
    flags: int
    body: bytes


class InterruptedDump(OSError):
    """A table changed while the kernel listed it, at every attempt. errno is EAGAIN."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) & 3)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Payloads by type; of a type that stands there twice, the last one. What is cut off at the end is left out."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of one datagram. What is cut off at the end is left out."""
    offset, end = 0, len(datagram)
    while offset + _HEADER.size <= end:
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > end:
            break
        yield Message(kind, flags, sequence, port, datagram[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


def refusal(message: Message) -> OSError | None:
    """What an ERROR or DONE message says: None for success, otherwise the errno with the kernel's own words if it has any."""
    if len(message.body) < 4:
        return None
    code = -_INT.unpack_from(message.body)[0]
    if code <= 0:
        return None
    words = os.strerror(code)
    if message.flags & F_ACK_TLVS:
        start = 4
        if message.kind == ERROR:  # the refused request's header, and all of it unless capped, stand in between
            start += _HEADER.size if message.flags & F_CAPPED else _HEADER.unpack_from(message.body, 4)[0]
        if text := attributes(message.body, start).get(_ACK_TEXT):
            words = text.rstrip(b"\0").decode(errors="replace")
    return OSError(code, words)


def subscribe(protocol: int, groups: Sequence[int], receive_buffer_bytes: int) -> socket.socket:
    """A non-blocking socket that receives the notifications of `groups`. Raises OSError where the kernel lacks the protocol."""
    sock = _open(protocol, receive_buffer_bytes)
    try:
        sock.setblocking(False)
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        sock.close()
        raise
    return sock


def _open(protocol: int, receive_buffer_bytes: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.bind((0, 0))
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer_bytes)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    except BaseException:
        sock.close()
        raise
    return sock


class NetlinkSocket:
    """Requests and their answers, one exchange at a time, in the network namespace the thread was in when it was made.

    Calls block, but not for long: the kernel handles a request within `send`, so the answer is there when it returns.
    """

    def __init__(self, protocol: int) -> None:
        self._sock = _open(protocol, 4 << 20)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            with contextlib.suppress(OSError):  # GET_STRICT_CHK is for rtnetlink only
                self._sock.setsockopt(_SOL_NETLINK, option, 1)
        self._sock.settimeout(_TIMEOUT_S)
        self.port: int = self._sock.getsockname()[0]
        self._sequence = 0

    def close(self) -> None:
        self._sock.close()

    def exchange(self, requests: Sequence[Request]) -> dict[int, OSError]:
        """Send all in one datagram and wait for every acknowledgement; the refused ones by their index.

        The kernel goes on after a refusal. At most a few hundred small requests fit.
        """
        first = self._sequence + 1
        datagram = b"".join(self._pack(kind, F_REQUEST | F_ACK | flags, body) for kind, flags, body in requests)
        pending = set(range(first, self._sequence + 1))
        refused: dict[int, OSError] = {}
        if pending:
            self._sock.send(datagram)
        while pending:
            for message in messages(self._sock.recv(_RECEIVE_BYTES)):
                if message.kind == ERROR and message.sequence in pending:
                    pending.remove(message.sequence)
                    if error := refusal(message):
                        refused[message.sequence - first] = error
        return refused

    def get(self, kind: int, body: bytes) -> bytes:
        """The body of the answer to one request. Raises OSError when it is refused."""
        self._sock.send(self._pack(kind, F_REQUEST, body))
        while True:
            for message in messages(self._sock.recv(_RECEIVE_BYTES)):
                if message.sequence == self._sequence:
                    if message.kind == ERROR:
                        raise refusal(message) or OSError(errno.EPROTO, "acknowledged, but not answered")
                    return message.body

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of a whole listing, seen at one moment. Raises OSError, or InterruptedDump if that moment never came."""
        for _ in range(_DUMP_ATTEMPTS):
            self._sock.send(self._pack(kind, F_REQUEST | F_DUMP, body))
            if (found := self._listing()) is not None:
                return found
        raise InterruptedDump(
            errno.EAGAIN, f"it changed during each of {_DUMP_ATTEMPTS} looks; what keeps writing to it?"
        )

    def _listing(self) -> list[bytes] | None:
        found: list[bytes] = []
        interrupted = False
        while True:
            for message in messages(self._sock.recv(_RECEIVE_BYTES)):
                if message.sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(message.flags & F_DUMP_INTR)
                if message.kind not in (ERROR, DONE):
                    found.append(message.body)
                elif error := refusal(message):
                    raise error
                else:
                    return None if interrupted else found

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body + bytes(-len(body) & 3)
