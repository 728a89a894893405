"""What waits to go into the stream: a short queue that drops on purpose, because TCP inside TCP must see losses early.

Handshakes and keepalives of WireGuard go first and are never dropped for delay. Data is controlled by CoDel (RFC 8289) and
by caps in number, bytes and time. Nothing here reads a clock: `now` is in seconds, monotonic.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import StrEnum
from math import sqrt

from agent.carrier.capsule import HEAD_BYTES

#: WireGuard's messages that come before data, by length: initiation, response, cookie reply, and data without content
#: (keepalive). They begin with their type and three zeros (whitepaper section 5.4).
_PRIORITY_TYPES = {148: b"\1\0\0\0", 92: b"\2\0\0\0", 64: b"\3\0\0\0", 32: b"\4\0\0\0"}
_INITIATION_BYTES = 148

PRIORITY_PACKETS = 64
INITIATION_LIFETIME_S = 5.0  # WireGuard sends the next one then (whitepaper section 6.1, Rekey-Timeout)

CODEL_TARGET_S = 0.005
CODEL_INTERVAL_S = 0.100
#: CoDel lets one packet wait for as long as it takes (RFC 8289 section 5).
_CODEL_SPARE_BYTES = 1500

CAP_PACKETS = 1000
CAP_BYTES = CAP_PACKETS * 1500
#: No packet goes out that has waited longer; on a slow link this is the cap. A stall of the stream (a lost segment that is
#: sent again after a timeout) is shorter, and what waited through it is still wanted.
CAP_S = 0.5


class Drop(StrEnum):
    """Why a packet was dropped."""

    CODEL = "codel"  #: it was the oldest of a queue that stays too long
    CAP = "cap"  #: it was the oldest of a full queue, or too old
    PRIORITY = "priority"  #: more handshakes wait than can be of use
    NO_STREAM = "no_stream"  #: no stream is up
    OVERSIZE = "oversize"  #: larger than any packet of WireGuard's
    UDP_SEND = "udp_send"  #: WireGuard's socket did not take it
    UDP_RCVBUF = "udp_rcvbuf"  #: the kernel had no room left for what WireGuard sent


def is_priority(packet: bytes) -> bool:
    return packet[:4] == _PRIORITY_TYPES.get(len(packet))


def is_initiation(packet: bytes) -> bool:
    return len(packet) == _INITIATION_BYTES and is_priority(packet)


class CoDel:
    """The control law of RFC 8289 section 5: drop at the head, ever faster, while packets keep waiting longer than the target."""

    __slots__ = ("_above_since", "_count", "_dropping", "_last_count", "_next_drop")

    def __init__(self) -> None:
        self._above_since: float | None = None
        self._dropping = False
        self._next_drop = 0.0
        self._count = 0
        self._last_count = 0

    def drops(self, sojourn_s: float, backlog_bytes: int, now: float) -> bool:
        """Whether the packet at the head, which waited `sojourn_s`, is dropped; `backlog_bytes` are behind it."""
        late = self._is_late(sojourn_s, backlog_bytes, now)
        if self._dropping:
            if not late:
                self._dropping = False
            elif now >= self._next_drop:
                self._count += 1
                self._next_drop += CODEL_INTERVAL_S / sqrt(self._count)
                return True
            return False
        if not late:
            return False
        self._dropping = True
        # Go on where the last episode ended when it was not long ago: the load is still the same.
        delta = self._count - self._last_count
        recent = now - self._next_drop < 16 * CODEL_INTERVAL_S
        self._count = delta if delta > 1 and recent else 1
        self._last_count = self._count
        self._next_drop = now + CODEL_INTERVAL_S / sqrt(self._count)
        return True

    def emptied(self) -> None:
        self._above_since = None
        self._dropping = False

    def _is_late(self, sojourn_s: float, backlog_bytes: int, now: float) -> bool:
        if sojourn_s < CODEL_TARGET_S or backlog_bytes <= _CODEL_SPARE_BYTES:
            self._above_since = None
            return False
        if self._above_since is None:
            self._above_since = now
            return False
        return now - self._above_since >= CODEL_INTERVAL_S


class SendQueue:
    """Packets on their way to the stream: priority first, then data, oldest first. Truth value: something waits."""

    __slots__ = ("_codel", "_data", "_priority", "drops", "waiting_bytes")

    def __init__(self) -> None:
        self._priority: deque[bytes] = deque()
        self._data: deque[tuple[float, bytes]] = deque()
        self._codel = CoDel()
        #: Bytes of data (not of priority packets) that wait.
        self.waiting_bytes = 0
        self.drops: Counter[Drop] = Counter()

    def __bool__(self) -> bool:
        return bool(self._data or self._priority)

    def __len__(self) -> int:
        return len(self._data) + len(self._priority)

    def push(self, packet: bytes, now: float) -> None:
        if is_priority(packet):
            if len(self._priority) >= PRIORITY_PACKETS:
                self._priority.popleft()
                self.drops[Drop.PRIORITY] += 1
            self._priority.append(packet)
            return
        self._data.append((now, packet))
        self.waiting_bytes += len(packet)
        while len(self._data) > CAP_PACKETS or self.waiting_bytes > CAP_BYTES:
            self._pop()
            self.drops[Drop.CAP] += 1

    def take(self, record_bytes: int, data_bytes: int, now: float) -> list[bytes]:
        """The next packets, as many as fit into `record_bytes` with a capsule head each; data while `data_bytes` lasts.

        The last packet may exceed `data_bytes`, so that a large packet always gets through a small window.
        """
        taken: list[bytes] = []
        while self._priority:
            record_bytes -= HEAD_BYTES + len(self._priority[0])
            if record_bytes < 0:
                return taken
            taken.append(self._priority.popleft())
        size = 0
        while self._data and size < data_bytes:
            if HEAD_BYTES + len(self._data[0][1]) > record_bytes:
                break
            since, packet = self._pop()
            if now - since > CAP_S:
                self.drops[Drop.CAP] += 1
                continue
            if self._codel.drops(now - since, self.waiting_bytes, now):
                self.drops[Drop.CODEL] += 1
                continue
            taken.append(packet)
            size += len(packet)
            record_bytes -= HEAD_BYTES + len(packet)
        if not self._data:
            self._codel.emptied()
        return taken

    def _pop(self) -> tuple[float, bytes]:
        since, packet = self._data.popleft()
        self.waiting_bytes -= len(packet)
        return since, packet


class LastInitiation:
    """What is kept while no stream is up: the newest handshake initiation. All else would be stale when it arrived."""

    __slots__ = ("_packet", "_since", "drops")

    def __init__(self) -> None:
        self._packet: bytes | None = None
        self._since = 0.0
        self.drops = 0

    def push(self, packet: bytes, now: float) -> None:
        if is_initiation(packet):
            self.drops += self._packet is not None
            self._packet, self._since = packet, now
        else:
            self.drops += 1

    def take(self, now: float) -> bytes | None:
        """The initiation, once, unless WireGuard has given it up by now."""
        packet, self._packet = self._packet, None
        if packet is not None and now - self._since > INITIATION_LIFETIME_S:
            self.drops += 1
            return None
        return packet
