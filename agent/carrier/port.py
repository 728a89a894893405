"""WireGuard's side of the relay: one connected UDP socket on 127.0.0.1."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Protocol

from agent.carrier.capsule import Run
from agent.carrier.gso import RunSender, works
from agent.carrier.queue import Drop, LastInitiation
from agent.carrier.scratch import scratch
from agent.carrier.sockets import grow_receive_buffer
from agent.carrier.stats import RelayStats
from agent.errors import HostError

_SO_MEMINFO = 55  # asm-generic/socket.h; nine counters, the last one is SK_MEMINFO_DROPS
_MEMINFO = struct.Struct("=9I")
_PACKETS_PER_TURN = 64


class Sink(Protocol):
    """Where WireGuard's packets go: a relay."""

    def on_udp(self, sock: socket.socket) -> None:
        """The socket is readable: take some packets from it. Called again at once while more are there."""

    def on_packet(self, packet: bytes) -> None:
        """A packet that waited for a stream."""


class UdpPort:
    """The socket through which one or more relays reach one WireGuard device.

    A client has one for its whole life: an old and a new stream share it (make-before-break); WireGuard's packets go to the
    relay that started last. While there is none, only the newest handshake initiation is kept, for 5 s, for the next one.
    A server has one per stream, and WireGuard roams to it.
    """

    __slots__ = ("_active", "_closed_drops", "_loop", "_sender", "_sock", "_waiting", "local_port")

    def __init__(self, wireguard_port: int, *, local_port: int = 0) -> None:
        """Bind 127.0.0.1:`local_port` (0: any) and connect to `wireguard_port`; needs a running loop. Raises HostError."""
        self._loop = asyncio.get_running_loop()
        self._sock = _connected(wireguard_port, local_port)
        #: What WireGuard sees as its peer's endpoint.
        self.local_port: int = self._sock.getsockname()[1]
        self._sender = RunSender(self._sock, gso=works())
        self._active: Sink | None = None
        self._waiting = LastInitiation()
        self._closed_drops: int | None = None
        self._loop.add_reader(self._sock, self._on_readable)

    def activate(self, sink: Sink) -> None:
        """From now on WireGuard's packets go to `sink`, first of all the initiation that waits."""
        self._active = sink
        packet = self._waiting.take(self._loop.time())
        if packet is not None:
            sink.on_packet(packet)

    def deactivate(self, sink: Sink) -> None:
        """No more packets to `sink`. Nothing happens when another one is active already."""
        if self._active is sink:
            self._active = None

    def send(self, run: Run) -> None:
        """Give datagrams to WireGuard; what it does not take is dropped and counted."""
        self._sender.send(run)

    def stats(self) -> RelayStats:
        """Drops that belong to no relay: no stream, the kernel's receive buffer full, WireGuard's socket full."""
        drops = {
            Drop.NO_STREAM: self._waiting.drops,
            Drop.UDP_RCVBUF: self._kernel_drops(),
            Drop.UDP_SEND: self._sender.drops,
        }
        return RelayStats(drops=tuple(sorted((reason.value, count) for reason, count in drops.items() if count)))

    def close(self) -> None:
        """Close the socket. Relays that still use it drop what they receive."""
        if self._closed_drops is None:
            self._closed_drops = self._kernel_drops()
            self._loop.remove_reader(self._sock)
            self._active = None
            self._sock.close()

    def _on_readable(self) -> None:
        if self._active is not None:
            self._active.on_udp(self._sock)
            return
        now, view = self._loop.time(), scratch().packet
        try:
            for _ in range(_PACKETS_PER_TURN):
                size = self._sock.recv_into(view)
                self._waiting.push(view[:size].tobytes(), now)
        except OSError:
            return  # drained, or the fate of an earlier packet (ECONNREFUSED while WireGuard is down)

    def _kernel_drops(self) -> int:
        if self._closed_drops is not None:
            return self._closed_drops
        counters = _MEMINFO.unpack(self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        return int(counters[8])


def _connected(wireguard_port: int, local_port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        grow_receive_buffer(sock)
        sock.bind(("127.0.0.1", local_port))
        sock.connect(("127.0.0.1", wireguard_port))
    except OSError as exc:
        sock.close()
        raise HostError(
            f"no UDP socket from 127.0.0.1:{local_port} to WireGuard's port {wireguard_port}: {exc.strerror};"
            " is another carrier running?",
            exc.errno or 0,
        ) from exc
    return sock
