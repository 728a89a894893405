"""Two buffers that all streams of a thread share, because each is used only while one callback runs.

A stream that is idle, or stuck, owns no buffer but what it could not yet send or parse.
"""

from __future__ import annotations

import threading

from agent.carrier.capsule import MAX_DATAGRAM_BYTES, MAX_STORED_BYTES, RECORD_BYTES

#: Read from one stream before it is parsed: long runs of datagrams, and still inside a processor's second-level cache.
READ_BYTES = 8 * RECORD_BYTES


class Scratch:
    """`tx` holds one record on its way to a stream, `rx` what was read from one."""

    __slots__ = ("rx", "rx_view", "tx", "tx_view")

    def __init__(self) -> None:
        # The last datagram of a record may begin just before the record is full.
        self.tx = bytearray(RECORD_BYTES + MAX_DATAGRAM_BYTES + 64)
        self.tx_view = memoryview(self.tx)
        # A parser that was stopped by its limit may hand back all that had been read.
        self.rx = bytearray(MAX_STORED_BYTES + READ_BYTES + RECORD_BYTES)
        self.rx_view = memoryview(self.rx)


_local = threading.local()


def scratch() -> Scratch:
    """The buffers of this thread."""
    try:
        found: Scratch = _local.scratch
    except AttributeError:
        found = _local.scratch = Scratch()
    return found
