"""From WireGuard into the stream: whole packets into records of up to 16 KiB, one system call per packet and one per record.

While the stream takes everything, packets are read from the UDP socket straight to where they leave from, each behind its
capsule head. As soon as the stream or the window is full they go through the queue, where they can be dropped.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from enum import Enum

from agent.carrier.capsule import DATAGRAM, HEAD_BYTES, MAX_DATAGRAM_BYTES, RECORD_BYTES, head
from agent.carrier.form import RIDER_BYTES, Form
from agent.carrier.outbox import Outbox
from agent.carrier.queue import Drop, SendQueue
from agent.carrier.scratch import scratch
from agent.carrier.window import Window

RECORDS_PER_TURN = 4
PACKETS_PER_TURN = 64
#: WireGuard's for a full packet of a tunnel with MTU 1420.
FULL_PACKET_BYTES = 1452
_HEAD = struct.Struct(">BHB")


class Blocked(Enum):
    """What a write waits for. TLS may have to read before it can write (RFC 8446 section 4.6)."""

    NO = 0
    ON_WRITE = 1
    ON_READ = 2


class StreamSender:
    """The writing half of a relay. Any OSError (an SSLError is one) that comes out of it ends the stream."""

    __slots__ = (
        "_pending",
        "_stream",
        "_typical",
        "blocked",
        "oversize",
        "packets",
        "payload_bytes",
        "queue",
        "window",
    )

    def __init__(self, stream: ssl.SSLSocket, *, window: Window | None) -> None:
        self._stream = stream
        #: A record that TLS has begun to write: it must be offered again, the same bytes, before anything else.
        self._pending: bytes | None = None
        #: The size that most packets are expected to have.
        self._typical = FULL_PACKET_BYTES
        self.blocked = Blocked.NO
        self.queue = SendQueue()
        #: None: the peer sends no acknowledgements.
        self.window = window
        self.packets = 0
        self.payload_bytes = 0
        self.oversize = 0

    @property
    def is_clean(self) -> bool:
        """Between two records: TLS can be closed in order."""
        return self._pending is None

    def drops(self) -> dict[Drop, int]:
        return {**self.queue.drops, Drop.OVERSIZE: self.oversize}

    def take(self, udp: socket.socket, outbox: Outbox, now: float) -> None:
        """The UDP socket is readable: move some packets from it to the stream, or to the queue."""
        for _ in range(RECORDS_PER_TURN):
            if self._must_queue(outbox):
                self._enqueue(udp, now)
                self.flush(outbox, now)
                return
            if not self._pass_record(udp, outbox, now):
                return

    def flush(self, outbox: Outbox, now: float) -> None:
        """Send what waits, until nothing does or the stream or the window is full."""
        if self._pending is not None and not self._write(self._pending):
            return
        while self._pending is None:
            urgent = outbox.take(RECORD_BYTES) if outbox else b""
            packets = self.queue.take(RECORD_BYTES - RIDER_BYTES - len(urgent), self._room(), now) if self.queue else []
            if not packets and not urgent:
                return
            record = [urgent or outbox.take(RIDER_BYTES)]
            for packet in packets:
                record += (head(len(packet)), packet)
            self._count(len(packets), sum(map(len, packets)), now)
            self._write(b"".join(record))

    def _must_queue(self, outbox: Outbox) -> bool:
        return bool(self._pending is not None or self.queue or outbox or self._room() < RECORD_BYTES)

    def _room(self) -> int:
        return self.window.room if self.window is not None else RECORD_BYTES

    def _pass_record(self, udp: socket.socket, outbox: Outbox, now: float) -> bool:
        """One record straight from the UDP socket to the stream; False: there are no more packets, or the stream is full."""
        record = scratch().form(self._typical)
        receive, typical, count, odd = udp.recv_into, record.size, 0, -1
        try:
            for place in record.places:
                size = receive(place)
                if size != typical:
                    odd = size
                    break
                count += 1
        except OSError:
            odd = -1  # no more (EAGAIN); or ECONNREFUSED, the fate of an earlier packet while WireGuard was down
        end = RIDER_BYTES + count * record.stride
        more = count == len(record.places)
        if odd >= 0:
            if not count:
                self._typical = min(odd, MAX_DATAGRAM_BYTES)
            others, end, more = self._fill(receive, record, end, odd)
            count += others
        if not count:
            return more
        rider = outbox.take(RIDER_BYTES)
        start = RIDER_BYTES - len(rider)
        record.buffer[start:RIDER_BYTES] = rider
        self._count(count, end - RIDER_BYTES - count * HEAD_BYTES, now)
        taken = self._write(record.view[start:end])
        if odd >= 0:
            record.restore()
        return taken and more

    def _fill(self, receive: Callable[[memoryview], int], record: Form, end: int, size: int) -> tuple[int, int, bool]:
        """Fill up a record with packets of any size, the first of which, of `size`, is behind `end` already.

        Returns their number, where they end, and whether there may be more.
        """
        buffer, view, count, stride = record.buffer, record.view, 0, 0
        try:
            while True:
                if size > MAX_DATAGRAM_BYTES:
                    self.oversize += 1
                else:
                    _HEAD.pack_into(buffer, end, DATAGRAM, 0x4001 + size, 0)
                    stride = size + HEAD_BYTES
                    end += stride
                    count += 1
                if end + stride > RECORD_BYTES:
                    return count, end, True
                size = receive(view[end + HEAD_BYTES :])
        except OSError:
            return count, end, False

    def _enqueue(self, udp: socket.socket, now: float) -> None:
        view, push = scratch().packet, self.queue.push
        try:
            for _ in range(PACKETS_PER_TURN):
                size = udp.recv_into(view)
                if size > MAX_DATAGRAM_BYTES:
                    self.oversize += 1
                else:
                    push(view[:size].tobytes(), now)
        except OSError:
            return

    def _count(self, packets: int, payload_bytes: int, now: float) -> None:
        self.packets += packets
        self.payload_bytes += payload_bytes
        if self.window is not None and packets:
            self.window.on_sent(payload_bytes, now)

    def _write(self, record: bytes | memoryview) -> bool:
        """Hand one record to TLS; False: it has to be offered again, and is kept."""
        try:
            self._stream.send(record)
        except ssl.SSLWantWriteError:
            self.blocked = Blocked.ON_WRITE
        except ssl.SSLWantReadError:
            self.blocked = Blocked.ON_READ
        else:
            self._pending, self.blocked = None, Blocked.NO
            return True
        self._pending = bytes(record)
        return False
