"""The other ends of a relay in one process: WireGuard's UDP socket and the far end of the TLS stream, as fast as it goes.

Each load keeps a bounded number of bytes on their way, as TCP connections inside the tunnel do, and counts what arrives.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable

from agent.carrier import capsule
from agent.carrier.capsule import RECORD_BYTES, CapsuleParser
from agent.carrier.gso import UDP_SEGMENT

#: What WireGuard sends for a full packet of a tunnel with MTU 1420.
DATAGRAM_BYTES = 1452
DATAGRAM = b"\x04\0\0\0" + bytes(DATAGRAM_BYTES - 4)
BURST = 44
ON_WAY_BYTES = 512 * DATAGRAM_BYTES
_RECORD = (capsule.head(DATAGRAM_BYTES) + DATAGRAM) * (RECORD_BYTES // (DATAGRAM_BYTES + 4))
_RECORD_PAYLOAD_BYTES = RECORD_BYTES // (DATAGRAM_BYTES + 4) * DATAGRAM_BYTES
_SEGMENTS = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", DATAGRAM_BYTES))]
#: After so long without an arrival, what is on its way counts as lost.
_LOST_S = 0.05

Pump = Callable[[float], int]


def wireguard_socket() -> socket.socket:
    """Receives packet by packet, as WireGuard does; its buffer takes all that can be on its way."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    sock.bind(("127.0.0.1", 0))
    return sock


def into_udp(udp: socket.socket, stream: ssl.SSLSocket) -> Pump:
    """Datagrams go into the stream; those that come out at the UDP socket are counted."""
    buffer = memoryview(bytearray(65536))
    trash = bytearray(65536)
    on_way = 0

    def pump(seconds: float) -> int:
        nonlocal on_way
        arrived, until, last = 0, time.monotonic() + seconds, time.monotonic()
        while (now := time.monotonic()) < until:
            busy = False
            with contextlib.suppress(ssl.SSLWantWriteError):
                while on_way < ON_WAY_BYTES:
                    stream.send(_RECORD)
                    on_way += _RECORD_PAYLOAD_BYTES
                    busy = True
            with contextlib.suppress(BlockingIOError):
                while True:
                    size = udp.recv_into(buffer)
                    arrived += size
                    on_way -= size
                    busy, last = True, now
            with contextlib.suppress(ssl.SSLWantReadError):
                while stream.recv_into(trash):
                    pass
            if now - last > _LOST_S:
                on_way, last = 0, now
            if not busy:
                select.select([udp, stream], [], [], 0.005)
        return arrived

    return pump


def out_of_udp(udp: socket.socket, port: int, stream: ssl.SSLSocket) -> Pump:
    """Datagrams go to the relay's UDP port; those that come out of the stream are counted and acknowledged."""
    parser = CapsuleParser(extensions=True)
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    on_way = 0

    def pump(seconds: float) -> int:
        nonlocal on_way
        before, until, last = parser.received_bytes, time.monotonic() + seconds, time.monotonic()
        while (now := time.monotonic()) < until:
            busy = False
            while on_way < ON_WAY_BYTES:
                udp.sendmsg([DATAGRAM] * BURST, _SEGMENTS, 0, ("127.0.0.1", port))
                on_way += BURST * DATAGRAM_BYTES
                busy = True
            end, received = parser.restore(buffer), parser.received_bytes
            with contextlib.suppress(ssl.SSLWantReadError):
                while end < 256 * 1024:
                    end += stream.recv_into(view[end:], 64 * 1024)
            parser.parse(buffer, end)
            if parser.received_bytes > received:
                on_way -= parser.received_bytes - received
                busy, last = True, now
                with contextlib.suppress(ssl.SSLWantWriteError):
                    stream.send(capsule.encode_ack(parser.received_bytes))
            if now - last > _LOST_S:
                on_way, last = 0, now
            if not busy:
                select.select([stream], [], [], 0.005)
        return parser.received_bytes - before

    return pump


def into_tcp(tcp: socket.socket, stream: ssl.SSLSocket) -> Pump:
    """Bytes go into the stream; those that come out at the TCP socket are counted."""
    trash = bytearray(1 << 18)

    def pump(seconds: float) -> int:
        arrived, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(ssl.SSLWantWriteError):
                for _ in range(16):
                    stream.send(_RECORD)
            with contextlib.suppress(BlockingIOError):
                while size := tcp.recv_into(trash):
                    arrived += size
        return arrived

    return pump


def out_of_tcp(tcp: socket.socket, stream: ssl.SSLSocket) -> Pump:
    """Bytes go into the TCP socket; those that come out of the stream are counted."""
    trash = bytearray(1 << 18)

    def pump(seconds: float) -> int:
        arrived, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                for _ in range(16):
                    tcp.send(_RECORD)
            with contextlib.suppress(ssl.SSLWantReadError):
                while size := stream.recv_into(trash):
                    arrived += size
        return arrived

    return pump
