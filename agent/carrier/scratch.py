"""Buffers that all streams of a thread share, because each is used only while one callback runs.

A stream that is idle, or stuck, owns no buffer but what it could not yet send or parse.
"""

from __future__ import annotations

import threading

from agent.carrier.capsule import MAX_DATAGRAM_BYTES, MAX_STORED_BYTES, RECORD_BYTES
from agent.carrier.form import Form

#: Read from one stream before it is parsed: long runs of datagrams, and still inside a processor's second-level cache.
READ_BYTES = 8 * RECORD_BYTES
_FORMS = 8


class Scratch:
    """`rx` holds what was read from a stream, `packet` one datagram, and the forms the records on their way to a stream."""

    __slots__ = ("_forms", "packet", "rx", "rx_view")

    def __init__(self) -> None:
        # A parser that was stopped by its limit may hand back all that had been read.
        self.rx = bytearray(MAX_STORED_BYTES + READ_BYTES + RECORD_BYTES)
        self.rx_view = memoryview(self.rx)
        self.packet = memoryview(bytearray(MAX_DATAGRAM_BYTES + 1))
        self._forms: dict[int, Form] = {}

    def form(self, size: int) -> Form:
        """The form for datagrams of this size."""
        found = self._forms.get(size)
        if found is None:
            if len(self._forms) == _FORMS:
                self._forms.clear()
            found = self._forms[size] = Form(size)
        return found


_local = threading.local()


def scratch() -> Scratch:
    """The buffers of this thread."""
    try:
        found: Scratch = _local.scratch
    except AttributeError:
        found = _local.scratch = Scratch()
    return found
