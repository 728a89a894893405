"""From WireGuard into the stream: whole packets into records of up to 16 KiB, one system call per packet and one per record.

While the stream takes everything, packets are read from the UDP socket straight to where they leave from, each behind its
capsule head. As soon as the stream or the window is full they go through the queue, where they can be dropped.
"""

from __future__ import annotations

import socket
import ssl
import struct
from enum import Enum

from agent.carrier.capsule import DATAGRAM, HEAD_BYTES, MAX_DATAGRAM_BYTES, RECORD_BYTES, head
from agent.carrier.outbox import Outbox
from agent.carrier.queue import Drop, SendQueue
from agent.carrier.scratch import scratch
from agent.carrier.window import Window

RECORDS_PER_TURN = 4
PACKETS_PER_TURN = 64
#: In front of the packets of a record: room for an acknowledgement that rides along.
_RIDER_BYTES = 32
_HEAD = struct.Struct(">BHB")


class Blocked(Enum):
    """What a write waits for. TLS may have to read before it can write (RFC 8446 section 4.6)."""

    NO = 0
    ON_WRITE = 1
    ON_READ = 2


class StreamSender:
    """The writing half of a relay. Any OSError (an SSLError is one) that comes out of it ends the stream."""

    __slots__ = ("_pending", "_stream", "blocked", "oversize", "packets", "payload_bytes", "queue", "window")

    def __init__(self, stream: ssl.SSLSocket, *, window: Window | None) -> None:
        self._stream = stream
        #: A record that TLS has begun to write: it must be offered again, the same bytes, before anything else.
        self._pending: bytes | None = None
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
            packets = (
                self.queue.take(RECORD_BYTES - _RIDER_BYTES - len(urgent), self._room(), now) if self.queue else []
            )
            if not packets and not urgent:
                return
            record = [urgent or outbox.take(_RIDER_BYTES)]
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
        buffers = scratch()
        buffer, view = buffers.tx, buffers.tx_view
        receive, write_head = udp.recv_into, _HEAD.pack_into
        end, capsule_bytes, count, drained = _RIDER_BYTES, 0, 0, False
        try:
            while end + capsule_bytes <= RECORD_BYTES:
                size = receive(view[end + HEAD_BYTES :])
                if size > MAX_DATAGRAM_BYTES:
                    self.oversize += 1
                    continue
                write_head(buffer, end, DATAGRAM, 0x4001 + size, 0)
                capsule_bytes = size + HEAD_BYTES
                end += capsule_bytes
                count += 1
        except OSError:
            drained = True  # EAGAIN; or ECONNREFUSED, the fate of an earlier packet while WireGuard was down
        if not count:
            return False
        rider = outbox.take(_RIDER_BYTES)
        start = _RIDER_BYTES - len(rider)
        buffer[start:_RIDER_BYTES] = rider
        self._count(count, end - _RIDER_BYTES - count * HEAD_BYTES, now)
        return self._write(view[start:end]) and not drained

    def _enqueue(self, udp: socket.socket, now: float) -> None:
        view, push = scratch().tx_view, self.queue.push
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
