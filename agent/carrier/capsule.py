"""The bytes inside the TLS stream: HTTP capsules (RFC 9297) with UDP datagrams in them (RFC 9298), and four capsules of ours.

A capsule is `type, length, value`, the first two as QUIC varints (RFC 9000 section 16). What we send has a constant four-byte
head, `00 4x xx 00`: type DATAGRAM, a two-byte length, context 0. What we accept is everything the RFCs allow. Unknown types
and contexts are skipped as they come in, never stored. Sans-IO: bytes in, values out, or BadMessage.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import NamedTuple

from agent.errors import BadMessage

# Capsule types. Ours are in the provisional range and clear of the grease values 0x29*N+0x17 (RFC 9297 section 5.4).
DATAGRAM = 0x00
CONTROL = 0x52485A
PING = 0x52485B
PONG = 0x52485C
ACK = 0x52485D

#: Plaintext of one TLS record (RFC 8446 section 5.1).
RECORD_BYTES = 16 * 1024
HEAD_BYTES = 4
#: Largest UDP payload that is carried: with its head, and an ack and a pong before it, it fits one record. WireGuard's are
#: an MTU (at most 9,000) and 80 bytes.
MAX_DATAGRAM_BYTES = 16_000
#: A receiver of more must abort the stream (RFC 9298 section 5).
MAX_UDP_PAYLOAD_BYTES = 65_527
MAX_CONTROL_BYTES = 64 * 1024
#: The most that a parser stores of a capsule until the rest of it is there (with two eight-byte varints).
MAX_STORED_BYTES = MAX_CONTROL_BYTES + 16

#: One sendmsg with UDP_SEGMENT takes at most this much (65,507: UDP over IPv4; 64 segments: older kernels).
RUN_BYTES = 65_507
RUN_DATAGRAMS = 64

_HEAD = struct.Struct(">BHB")
_NUMBER = struct.Struct(">Q")


class Run(NamedTuple):
    """Consecutive datagrams that fit one sendmsg with UDP_SEGMENT: all have `segment_bytes`, only the last may be shorter.

    The payloads are views of the parsed buffer, valid until it is written to.
    """

    segment_bytes: int
    total_bytes: int
    payloads: list[memoryview]


@dataclass(frozen=True, slots=True)
class Control:
    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    opaque: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    opaque: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """`received_bytes`: UDP payload the peer has received on this stream, since its start."""

    received_bytes: int


Item = Run | Control | Ping | Pong | Ack

_SKIP = -1  # where a capsule type stands: not for us


def head(size: int) -> bytes:
    """The four bytes in front of a UDP payload of `size` bytes, 0 to MAX_DATAGRAM_BYTES."""
    return _HEAD.pack(DATAGRAM, 0x4000 | (size + 1), 0)


def encode_varint(value: int) -> bytes:
    """The shortest encoding of 0 to 2**62-1 (RFC 9000 section 16)."""
    for prefix, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError("a varint holds 62 bits")


def encode_control(text: str) -> bytes:
    """Raises ValueError when `text` is longer than MAX_CONTROL_BYTES in UTF-8."""
    value = text.encode()
    if len(value) > MAX_CONTROL_BYTES:
        raise ValueError(f"a control message has at most {MAX_CONTROL_BYTES} bytes, this one has {len(value)}")
    return encode_varint(CONTROL) + encode_varint(len(value)) + value


def encode_ping(opaque: bytes) -> bytes:
    return _PING_HEAD + opaque


def encode_pong(opaque: bytes) -> bytes:
    return _PONG_HEAD + opaque


def encode_ack(received_bytes: int) -> bytes:
    return _ACK_HEAD + _NUMBER.pack(received_bytes)


#: Least and most length of the value of each capsule of ours.
_OWN_LENGTHS = {CONTROL: (0, MAX_CONTROL_BYTES), PING: (8, 8), PONG: (8, 8), ACK: (8, 8)}
_PING_HEAD, _PONG_HEAD, _ACK_HEAD = (encode_varint(kind) + encode_varint(8) for kind in (PING, PONG, ACK))


class CapsuleParser:
    """Incremental parser of one direction of a stream.

    The buffer belongs to the caller and is shared by all streams; between calls the parser keeps only what it could not
    parse yet. Use: `end = parser.restore(buffer)`, read from the stream into `buffer[end:]`, `parser.parse(buffer, end + n)`.
    """

    __slots__ = ("_extensions", "_rest", "_skip_bytes", "backlog", "oversize", "parsed", "received_bytes", "skipped")

    def __init__(self, *, extensions: bool, early: bytes = b"") -> None:
        """`extensions=False`: our own capsule types are unknown ones. `early`: bytes that were read before."""
        self._extensions = extensions
        self._rest = early
        self._skip_bytes = 0
        #: Whole capsules may be left that `limit` kept from being parsed: parse again without reading.
        self.backlog = bool(early)
        #: Capsules that the last call has dealt with, also those skipped.
        self.parsed = 0
        #: UDP payload received in context 0, also of datagrams too large to be used: the value of our Ack.
        self.received_bytes = 0
        #: Datagrams larger than MAX_DATAGRAM_BYTES.
        self.oversize = 0
        #: Capsules of an unknown type and datagrams of an unknown context.
        self.skipped = 0

    @property
    def inside_capsule(self) -> bool:
        """The stream must not end here (RFC 9297 section 3.3)."""
        return bool(self._rest or self._skip_bytes)

    def restore(self, buffer: bytearray) -> int:
        """Put what is not parsed yet at the start of `buffer`; returns its length."""
        rest = self._rest
        buffer[: len(rest)] = rest
        return len(rest)

    def parse(self, buffer: bytearray, end: int, limit: int = 1 << 30) -> list[Item]:
        """Parse `buffer[:end]`, which starts with what `restore` put there, and keep the rest.

        Stops after `limit` capsules; then `backlog` is set. Raises BadMessage: the stream is broken and must be closed.
        """
        view = memoryview(buffer)
        items: list[Item] = []
        pos, left = self._skip(0, end), limit
        while pos < end and left > 0:
            value = self._value_at(buffer, pos, end)
            if value is None:
                break
            kind, start, stop = value
            if kind == _SKIP:
                self._skip_bytes = stop - start
                pos = self._skip(start, end)
                left -= 1
            elif stop > end:
                break
            elif kind == DATAGRAM:
                run, pos = _run(buffer, view[:end], start, stop, left)
                items.append(run)
                self.received_bytes += run.total_bytes
                left -= len(run.payloads)
            else:
                items.append(_own(kind, view[start:stop].tobytes()))
                pos = stop
                left -= 1
        self._rest = view[pos:end].tobytes()
        self.parsed = limit - left
        self.backlog = left <= 0 and pos < end
        return items

    def _skip(self, pos: int, end: int) -> int:
        """Where to go on behind what is skipped; what of it has not come yet is skipped when it comes."""
        skipped = min(self._skip_bytes, end - pos)
        self._skip_bytes -= skipped
        return pos + skipped

    def _value_at(self, buffer: bytearray, pos: int, end: int) -> tuple[int, int, int] | None:
        """Type, start and end of the value (of a datagram: the payload) of the capsule at `pos`; None: come back with more.

        The end may lie behind `end`. What is too large to be used is refused, or skipped, before it is there.
        """
        if pos + HEAD_BYTES <= end:
            kind, length, context = _HEAD.unpack_from(buffer, pos)
            if kind == DATAGRAM and context == 0 and 0x4000 < length <= 0x4001 + MAX_DATAGRAM_BYTES:
                return DATAGRAM, pos + HEAD_BYTES, pos + HEAD_BYTES - 0x4001 + length
        head = _varint_at(buffer, pos, end)
        if head is None:
            return None
        kind, pos = head
        head = _varint_at(buffer, pos, end)
        if head is None:
            return None
        length, start = head
        if kind == DATAGRAM:
            return self._payload_at(buffer, start, start + length, end)
        if not self._extensions or kind not in _OWN_LENGTHS:
            self.skipped += 1
            return _SKIP, start, start + length
        least, most = _OWN_LENGTHS[kind]
        if not least <= length <= most:
            raise BadMessage(f"a capsule of type {kind:#x} with {length} bytes; {least} to {most} are allowed")
        return kind, start, start + length

    def _payload_at(self, buffer: bytearray, start: int, stop: int, end: int) -> tuple[int, int, int] | None:
        """The same for the value of a DATAGRAM capsule, which is a context id and the payload (RFC 9298 section 5)."""
        if start == stop or (start < end and start + _varint_size(buffer[start]) > stop):
            raise BadMessage("a DATAGRAM capsule that is too short for its context id")
        head = _varint_at(buffer, start, end)
        if head is None:
            return None
        context, start = head
        if context != 0:
            self.skipped += 1
            return _SKIP, start, stop
        size = stop - start
        if size > MAX_UDP_PAYLOAD_BYTES:
            raise BadMessage(f"a UDP payload of {size} bytes; {MAX_UDP_PAYLOAD_BYTES} is the most there is")
        if size > MAX_DATAGRAM_BYTES:
            self.oversize += 1
            self.received_bytes += size
            return _SKIP, start, stop
        return DATAGRAM, start, stop


def _run(buffer: bytearray, view: memoryview, start: int, stop: int, limit: int) -> tuple[Run, int]:
    """The run that begins with the payload at `start`, and where it ends. `view` ends where the buffer's content does."""
    total = segment = stop - start
    end = len(view)
    same, places = _shape(segment)
    most = min(RUN_DATAGRAMS, limit, RUN_BYTES // segment) if segment else 1
    if most > 1 and buffer.startswith(same, stop):
        count = 1 + _repeats(buffer, stop, end, same, segment, most - 1)
        payloads = list(map(view[start:].__getitem__, places[:count]))
        total = count * segment
        stop = start + total + (count - 1) * HEAD_BYTES
        most -= count - 1
    else:
        payloads = [view[start:stop]]
    if most > 1 and stop + HEAD_BYTES <= end:
        kind, length, context = _HEAD.unpack_from(buffer, stop)
        size = length - 0x4001
        if kind == DATAGRAM and context == 0 and 0 < size < segment and stop + HEAD_BYTES + size <= end:
            payloads.append(view[stop + HEAD_BYTES : stop + HEAD_BYTES + size])
            stop += HEAD_BYTES + size
            total += size
    return Run(segment, total, payloads), stop


def _repeats(buffer: bytearray, pos: int, end: int, same: bytes, size: int, most: int) -> int:
    """How many whole datagrams of `size` there are in a row from `pos`, up to `most`; `same` is their head."""
    stride = size + HEAD_BYTES
    most = min(most, (end - pos) // stride)
    # Mostly all that fit: four comparisons of every so-many-eth byte say so at once.
    behind = pos + most * stride
    if (
        buffer[pos + 1 : behind : stride] == same[1:2] * most
        and buffer[pos + 2 : behind : stride] == same[2:3] * most
        and buffer[pos:behind:stride] == buffer[pos + 3 : behind : stride] == bytes(most)
    ):
        return most
    count = 0
    while count < most and buffer.startswith(same, pos + count * stride):
        count += 1
    return count


@functools.lru_cache(maxsize=128)
def _shape(size: int) -> tuple[bytes, tuple[slice, ...]]:
    """The head of datagrams of this size, and where they are in a run, counted from the first. Streams repeat few sizes."""
    stride = size + HEAD_BYTES
    return head(size), tuple(slice(n * stride, n * stride + size) for n in range(RUN_DATAGRAMS))


def _own(kind: int, value: bytes) -> Item:
    if kind == PING:
        return Ping(value)
    if kind == PONG:
        return Pong(value)
    if kind == ACK:
        return Ack(int.from_bytes(value, "big"))
    try:
        return Control(value.decode())
    except UnicodeDecodeError as exc:
        raise BadMessage(f"a control message that is not UTF-8: {exc.reason} at byte {exc.start}") from exc


def _varint_size(first: int) -> int:
    return 1 << (first >> 6)


def _varint_at(buffer: bytearray, pos: int, end: int) -> tuple[int, int] | None:
    """The varint at `pos`, of any length (RFC 9000 section 16), and where it ends; None: it is not all there."""
    if pos >= end:
        return None
    size = _varint_size(buffer[pos])
    if pos + size > end:
        return None
    return int.from_bytes(buffer[pos : pos + size], "big") & ((1 << (8 * size - 2)) - 1), pos + size
