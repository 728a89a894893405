"""From the stream towards WireGuard: as much as the stream has, up to 128 KiB, parsed in one go into runs of datagrams."""

from __future__ import annotations

import ssl

from agent.carrier.capsule import RECORD_BYTES, CapsuleParser, Item
from agent.carrier.scratch import READ_BYTES, scratch


class StreamReceiver:
    """The reading half of a relay. Any OSError that comes out of it ends the stream, and so does BadMessage."""

    __slots__ = ("_stream", "ended", "more", "packets", "parser", "wants_write")

    def __init__(self, stream: ssl.SSLSocket, *, extensions: bool, early: bytes) -> None:
        self._stream = stream
        self.parser = CapsuleParser(extensions=extensions, early=early)
        #: There may be more to read or to parse now.
        self.more = bool(early)
        #: The peer will send nothing more.
        self.ended = False
        #: TLS has to write before it can read (a key update, RFC 8446 section 4.6.3).
        self.wants_write = False
        #: Datagrams given to WireGuard; counted by the relay.
        self.packets = 0

    def read(self, limit: int) -> list[Item]:
        """Read and parse up to `limit` capsules. Datagrams in what is returned are views of a buffer that the next read of
        any stream overwrites."""
        buffers = scratch()
        end = self.parser.restore(buffers.rx)
        unread = True
        if not self.parser.backlog:
            end, unread = self._fill(buffers.rx_view, end)
        items = self.parser.parse(buffers.rx, end, limit)
        self.more = unread or self.parser.backlog
        return items

    def _fill(self, view: memoryview, end: int) -> tuple[int, bool]:
        """Read until READ_BYTES are there or the stream has no more, which is False in the answer. A whole record always
        fits, so that TLS itself never holds back data of which epoll knows nothing."""
        full = end + READ_BYTES
        self.wants_write = False
        try:
            while end < full:
                size = self._stream.recv_into(view[end:], full + RECORD_BYTES - end)
                if not size:
                    self.ended = True
                    return end, False
                end += size
        except ssl.SSLWantReadError:
            return end, False
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return end, False
        return end, True
