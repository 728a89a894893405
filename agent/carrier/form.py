"""The buffer of one record, laid out for datagrams of one size, with their capsule heads in it already.

Bulk traffic is packets of one size. For those, reading from the UDP socket is all that is left to do per packet.
"""

from __future__ import annotations

from agent.carrier.capsule import HEAD_BYTES, MAX_DATAGRAM_BYTES, RECORD_BYTES, head

#: In front of the datagrams: room for an acknowledgement that rides along.
RIDER_BYTES = 32


class Form:
    """`places` are where the payloads go, one behind the other, each up to the end of the buffer.

    A datagram of another size overwrites heads behind it; `restore` puts them back.
    """

    __slots__ = ("buffer", "places", "size", "stride", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self.stride = size + HEAD_BYTES
        # The last datagram may begin just before the record is full, and one that is too large has to be noticed.
        self.buffer = bytearray(RECORD_BYTES + HEAD_BYTES + MAX_DATAGRAM_BYTES + 1)
        self.view = memoryview(self.buffer)
        self.places = [
            self.view[start + HEAD_BYTES :]
            for start in range(RIDER_BYTES, max(RIDER_BYTES, RECORD_BYTES - self.stride) + 1, self.stride)
        ]
        self.restore()

    def restore(self) -> None:
        """All heads as they were."""
        count, same = len(self.places), head(self.size)
        end = RIDER_BYTES + count * self.stride
        for n in range(HEAD_BYTES):
            self.buffer[RIDER_BYTES + n : end : self.stride] = same[n : n + 1] * count
