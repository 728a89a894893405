"""Socket options of the carrier, with what each is for. All of them are set before connect and again on accepted sockets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl

from agent.model import FWMARK

log = logging.getLogger("rhizome.carrier")

TCP_THIN_LINEAR_TIMEOUTS, TCP_NOTSENT_LOWAT = 16, 25  # linux/tcp.h; not in the socket module of Python 3.11
#: Unsent bytes the kernel may hold. What waits beyond them waits in our queue, where it can still be dropped.
NOTSENT_LOWAT_BYTES = 128 * 1024
#: Sent bytes that stay unacknowledged for so long end the connection (RFC 5482).
USER_TIMEOUT_MS = 15_000
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 15, 5, 3

SO_RCVBUFFORCE = 33  # asm-generic/socket.h
UDP_RCVBUF_BYTES = 4 * 1024 * 1024

LINGER_S = 1.0
_DISCARD_BYTES = 64 * 1024


def tune_tcp(sock: socket.socket) -> None:
    """Prepare a TCP socket to carry datagrams. Buffer sizes stay with the kernel, because setting one ends its autotuning.

    BBR keeps 40 Mbit/s at 0.5 % loss where cubic falls to 5; where it is not allowed, the system's default stays.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # With next to nothing in flight, a lost segment is sent again every 200 ms, not after 200, 400, 800 and 1,600.
    sock.setsockopt(socket.IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")


def set_mark(sock: socket.socket) -> bool:
    """Put the tunnel's mark on a socket, so that its packets are never routed into the tunnel.

    False without CAP_NET_ADMIN, said once in the log: then no route of ours exists either that could capture them.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
    except PermissionError:
        _say_unmarked()
        return False
    return True


@functools.cache
def _say_unmarked() -> None:
    log.warning(
        "no CAP_NET_ADMIN: the carrier's packets carry no mark %#x; routes into the tunnel must not cover its own endpoint",
        FWMARK,
        extra={"event": "carrier.unmarked"},
    )


def grow_receive_buffer(sock: socket.socket) -> None:
    """Give a UDP socket room for a burst of WireGuard's; without CAP_NET_ADMIN the kernel clamps it to net.core.rmem_max."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, UDP_RCVBUF_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_RCVBUF_BYTES)


def linger(loop: asyncio.AbstractEventLoop, stream: ssl.SSLSocket) -> None:
    """Close a stream in order, without waiting: close_notify, FIN, then read on until the peer's, at most LINGER_S.

    A socket that is closed while unread bytes wait is reset, and the peer would lose the last message we sent.
    """

    def finish() -> None:
        timer.cancel()
        loop.remove_reader(stream)
        stream.close()

    def discard() -> None:
        try:
            while stream.recv(_DISCARD_BYTES):
                pass
        except BlockingIOError:
            return
        except OSError as exc:
            log.debug("lingering stream: %s", exc, extra={"event": "stream.lingered"})
        finish()

    try:
        with contextlib.suppress(ssl.SSLError):  # the peer has not said close_notify yet, and need not
            stream.unwrap()
        stream.shutdown(socket.SHUT_WR)
    except OSError:
        stream.close()
        return
    timer = loop.call_later(LINGER_S, finish)
    loop.add_reader(stream, discard)
