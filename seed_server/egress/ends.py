"""The two kinds of connection ends: a plain socket, and TLS over one. Non-blocking, with one shared buffer for all.

An idle end owns no buffer. `readable` and `writable` are what epoll said last (edge-triggered): cleared when an operation
would block, set again by an event.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct

#: The most that one read brings. Large, because a system call and a turn of the interpreter cost as much as copying 20 KiB.
READ_BYTES = 256 * 1024
#: Of a Unix socket's stream; beyond what its send buffer takes, the rest would only be copied.
UNIX_READ_BYTES = 160 * 1024
#: Encrypted bytes per read. What it decrypts to fits the shared buffer whole, so nothing has to be kept.
RAW_BYTES = 128 * 1024
#: TLS 1.3: a record holds 16 KiB (RFC 8446 section 5.1). OpenSSL's memory never holds more than a few.
RECORD_BYTES = 16 * 1024
_SLICE_BYTES = RECORD_BYTES + 256

_buffer = memoryview(bytearray(READ_BYTES))
_raw = memoryview(bytearray(RAW_BYTES))
_LINGER_NONE = struct.pack("ii", 1, 0)

GONE = select.EPOLLHUP | select.EPOLLERR


class Plain:
    """A connected TCP or Unix stream socket."""

    __slots__ = ("is_gone", "read_bytes", "readable", "sock", "writable")

    def __init__(self, sock: socket.socket, *, read_bytes: int = READ_BYTES) -> None:
        self.sock = sock
        self.read_bytes = read_bytes
        self.readable = True
        self.writable = True
        self.is_gone = False  # the peer has closed both directions, or the connection broke

    def on_event(self, mask: int) -> None:
        if mask & (select.EPOLLIN | select.EPOLLRDHUP | GONE):
            self.readable = True
        if mask & (select.EPOLLOUT | GONE):
            self.writable = True
        if mask & GONE:
            self.is_gone = True

    def read(self) -> memoryview | None:
        """What has arrived, in a buffer that the next read of any end uses again; empty at the end; None: not now.

        Raises OSError.
        """
        try:
            return _buffer[: self.sock.recv_into(_buffer[: self.read_bytes])]
        except BlockingIOError:
            self.readable = False
            return None

    def write(self, data: memoryview) -> int:
        """How much was taken. Raises OSError."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.writable = False
        return sent

    def flush(self) -> bool:
        """Whether nothing that was taken waits here."""
        return True

    def end(self) -> bool:
        """No more is written: the peer sees the end of the stream, and may still speak. False: call again when writable."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        self.sock.close()

    def abort(self) -> None:
        """Close so that the peer can tell it from an end (TCP: a reset)."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.sock.close()


class Secure(Plain):
    """The server's end of a TLS connection. Half-closes are close_notify alerts (RFC 8446 section 6.1)."""

    __slots__ = ("_has_ended", "_incoming", "_outgoing", "_tls", "_unsent")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent: list[memoryview] = []
        self._has_ended = False

    @property
    def tls(self) -> ssl.SSLObject:
        return self._tls

    def handshake(self) -> bool:
        """True when it is done; False: call again when there is more to read. Raises OSError (ssl.SSLError)."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._push()  # the alert that tells the peer why
                raise
            else:
                self._push()
                return True
            size = self._receive()
            if size is None:
                return False
            if not size:
                raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "closed during the handshake")
            self._incoming.write(_raw[:size])

    def read(self) -> memoryview | None:
        """Like Plain's. An end without close_notify may be an attacker's: it raises ConnectionResetError."""
        filled, has_ended = self._decrypt(0)
        while not filled and not has_ended:
            size = self._receive()
            if size is None:
                return None
            if not size:
                self._incoming.write_eof()
                raise ConnectionResetError("the TLS stream was cut off")
            for start in range(0, size, _SLICE_BYTES):
                self._incoming.write(_raw[start : min(size, start + _SLICE_BYTES)])
                filled, has_ended = self._decrypt(filled)
        if self._outgoing.pending:
            self._push()  # an answer to a key update
        return _buffer[:filled]

    def write(self, data: memoryview) -> int:
        if not self.flush():
            return 0
        taken = 0
        while taken < len(data):
            taken += self._tls.write(data[taken : taken + RECORD_BYTES])
            self._unsent.append(memoryview(self._outgoing.read()))
        self.flush()
        return taken

    def flush(self) -> bool:
        while self._unsent:
            try:
                sent = self.sock.sendmsg(self._unsent)
            except BlockingIOError:
                self.writable = False
                return False
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.pop(0))
            if sent:
                self._unsent[0] = self._unsent[0][sent:]
        return True

    def end(self) -> bool:
        if not self._has_ended:
            self._has_ended = True
            with contextlib.suppress(ssl.SSLError):  # the peer has not said close_notify yet, and need not
                self._tls.unwrap()
            self._unsent.append(memoryview(self._outgoing.read()))
        with contextlib.suppress(OSError):
            if not self.flush():
                return False
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def _receive(self) -> int | None:
        try:
            return self.sock.recv_into(_raw)
        except BlockingIOError:
            self.readable = False
            return None

    def _decrypt(self, filled: int) -> tuple[int, bool]:
        """All that OpenSSL can decrypt now, behind what stands in the shared buffer; and whether the peer has ended."""
        try:
            while filled < READ_BYTES:
                size = self._tls.read(READ_BYTES - filled, _buffer[filled:])
                if not size:
                    return filled, True
                filled += size  # type: ignore[operator]  # a number, when it is given a buffer
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return filled, True
        return filled, False

    def _push(self) -> None:
        if self._outgoing.pending:
            self._unsent.append(memoryview(self._outgoing.read()))
        self.flush()
