"""What goes into the stream before any packet: control messages, pings, and the answers we owe. Bounded, whatever the peer does."""

from __future__ import annotations

from agent.carrier import capsule

#: A peer that lets so much wait does not read its control messages.
MOST_BYTES = 1024 * 1024
ACK_EVERY_BYTES = 32 * 1024
ACK_DELAY_S = 0.005


class Outbox:
    """Capsules of ours in the order they have to go out. Of pongs and acks only the newest matters, so only that is kept."""

    __slots__ = ("_ack_due", "_acked_bytes", "_bytes", "_pong", "received_bytes")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._pong: bytes | None = None
        #: UDP payload received from the peer, and what of it we have acknowledged.
        self.received_bytes = 0
        self._acked_bytes = 0
        self._ack_due = False

    def __bool__(self) -> bool:
        """Something has to go out now."""
        return bool(self._bytes) or self._pong is not None or self._ack_due or self.unacked_bytes >= ACK_EVERY_BYTES

    @property
    def unacked_bytes(self) -> int:
        return self.received_bytes - self._acked_bytes

    @property
    def overflows(self) -> bool:
        return len(self._bytes) > MOST_BYTES

    def control(self, text: str) -> None:
        """Raises ValueError when the text is too long."""
        self._bytes += capsule.encode_control(text)

    def ping(self, opaque: bytes) -> None:
        self._bytes += capsule.encode_ping(opaque)

    def pong(self, opaque: bytes) -> None:
        self._pong = opaque

    def ack(self) -> None:
        """What was received is to be acknowledged now, however little it is."""
        self._ack_due = self.unacked_bytes > 0

    def take(self, most_bytes: int) -> bytes:
        """The next bytes, at most `most_bytes`; while they are as many, nothing else may be sent between this and the next take.

        An acknowledgement rides along whenever there is something to acknowledge. It always goes before a pong: who gets the
        pong knows that all its data before the ping is accounted for.
        """
        if len(self._bytes) < most_bytes - _ANSWERS_BYTES:
            if self.unacked_bytes:
                self._acked_bytes = self.received_bytes
                self._ack_due = False
                self._bytes += capsule.encode_ack(self._acked_bytes)
            if self._pong is not None:
                self._bytes += capsule.encode_pong(self._pong)
                self._pong = None
        taken = bytes(self._bytes[:most_bytes])
        del self._bytes[:most_bytes]
        return taken


_ANSWERS_BYTES = len(capsule.encode_ack(0)) + len(capsule.encode_pong(bytes(8)))
