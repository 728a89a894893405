"""Moves bytes between the two ends of every tunnel, in both directions, without one tunnel waiting for another.

One edge-triggered epoll for all sockets: a registration is made once and never changed, and the loop is told of one file
descriptor only. A direction holds at most what one read brought; while that waits for its reader nothing more is read, so
back-pressure reaches the sender through the kernel's own windows. No tunnel moves more than TURN_BYTES before the others.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import select
import socket
import termios
from collections import deque
from collections.abc import Callable

from agent.model import IPAddress
from agent.run import spawn
from seed_server.egress.ends import Plain

#: For one direction of one tunnel, before the next tunnel's turn.
TURN_BYTES = 512 * 1024
#: For all tunnels together, before the rest of the process has its turn.
ROUND_BYTES = 4 * 1024 * 1024
EVENTS_MAX = 256
#: A tunnel that one side has ended, and in which nothing moves for so long, is closed: that side may be gone for good.
HALF_CLOSED_S = 3600.0
#: One side is gone for good, and the other does not take what it left.
GONE_S = 60.0
_SWEEP_S = 30.0
#: How often we look whether the client has taken its head, when the target speaks first.
_HELD_FIRST_S, _HELD_CAP_S = 0.001, 0.05

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class _Flow:
    """One direction. `pending` is what was read and not yet written, `is_over`: its end has been passed on."""

    __slots__ = ("at_end", "is_over", "pending", "sink", "source")

    def __init__(self, source: Plain, sink: Plain, pending: bytes = b"") -> None:
        self.source = source
        self.sink = sink
        self.pending = memoryview(pending)
        self.at_end = False
        self.is_over = False

    def move(self, budget: int) -> int:
        """Move at most about `budget` bytes on; how many were moved. Raises OSError."""
        moved = 0
        while not self.is_over:
            if self.pending:
                if not self.sink.writable:
                    break
                size = self.sink.write(self.pending)
                self.pending = self.pending[size:]
                moved += size
                if self.pending:
                    continue
            if not self.sink.flush():
                break
            if self.at_end:
                self.is_over = self.sink.end()
                if not self.is_over:
                    break
                continue
            if moved >= budget or not self.source.readable:
                break
            data = self.source.read()
            if data is None:
                break
            if not data:
                self.at_end = True
                continue
            size = self.sink.write(data)
            moved += size
            if size < len(data):
                self.pending = memoryview(bytes(data[size:]))
        return moved

    @property
    def can_go_on(self) -> bool:
        """Whether another turn would move something. (At an end, only `move` itself knows.)"""
        return not self.is_over and not self.pending and self.source.readable and self.sink.writable


class Tunnel:
    """A client and its target. `up` leads to the target; `address` is where that is in the shoot, None for one in the seed."""

    __slots__ = ("address", "client", "down", "held_s", "is_queued", "lost_at", "on_closed", "target", "touched", "up")

    def __init__(
        self,
        client: Plain,
        target: Plain,
        early: bytes,
        on_closed: Callable[[], None],
        address: IPAddress | None = None,
    ) -> None:
        self.client = client
        self.target = target
        self.address = address
        #: Since when nothing has got there; None when it has, or is not known not to.
        self.lost_at: float | None = None
        self.up = _Flow(client, target, early)
        self.down = _Flow(target, client)
        self.on_closed = on_closed
        self.is_queued = False
        self.touched = 0.0
        #: Until the client has read its head or spoken; 0: not held (any more).
        self.held_s = _HELD_FIRST_S if client.sock.family == socket.AF_UNIX and not early else 0.0

    @property
    def is_over(self) -> bool:
        """Both directions are, or the one that is left leads to somebody who is gone."""
        if self.client.is_gone and self.up.is_over:
            return True
        if self.target.is_gone and self.down.is_over:
            return True
        return self.up.is_over and self.down.is_over


class Pump:
    """All tunnels of the process. Made with a running loop."""

    def __init__(self) -> None:
        self.up_bytes = 0
        self.down_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._tunnels: dict[int, tuple[Tunnel, Plain]] = {}
        self._queue: deque[Tunnel] = deque()
        self._is_scheduled = False
        self._loop.add_reader(self._epoll.fileno(), self._on_events)
        self._sweeping = spawn(self._sweep(), name="egress.sweep", vital=True)

    def __len__(self) -> int:
        return len(self._tunnels) // 2

    def add(self, tunnel: Tunnel) -> None:
        """From now on its sockets are the pump's."""
        for end in (tunnel.client, tunnel.target):
            self._tunnels[end.sock.fileno()] = tunnel, end
            self._epoll.register(end.sock.fileno(), _EVENTS)
        tunnel.touched = self._loop.time()
        self._enqueue(tunnel)

    def close(self) -> None:
        """End all tunnels."""
        if self._epoll.closed:
            return
        for tunnel in self.all():
            self.remove(tunnel, Plain.abort)
        self._sweeping.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def all(self) -> list[Tunnel]:
        """Every open tunnel."""
        return [tunnel for tunnel, end in self._tunnels.values() if end is tunnel.client]

    def _on_events(self) -> None:
        for fd, mask in self._epoll.poll(0, EVENTS_MAX):
            tunnel, end = self._tunnels[fd]
            end.on_event(mask)
            if not tunnel.is_queued:
                tunnel.is_queued = True
                self._queue.append(tunnel)
        if not self._is_scheduled:
            self._run()

    def _enqueue(self, tunnel: Tunnel) -> None:
        if not tunnel.is_queued:
            tunnel.is_queued = True
            self._queue.append(tunnel)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        left = ROUND_BYTES
        # Those that join meanwhile have their turn in the next round.
        for _ in range(len(self._queue)):
            tunnel = self._queue.popleft()
            tunnel.is_queued = False
            left -= self._turn(tunnel)
            if left <= 0:
                break
        if self._queue:
            self._schedule()

    def _turn(self, tunnel: Tunnel) -> int:
        """One tunnel's turn; how many bytes it moved."""
        try:
            up = tunnel.up.move(TURN_BYTES)
            if tunnel.held_s and (up or tunnel.up.at_end):
                tunnel.held_s = 0.0
            down = 0 if tunnel.held_s and self._hold(tunnel) else tunnel.down.move(TURN_BYTES)
        except OSError:
            self.remove(tunnel, Plain.abort)
            return 0
        self.up_bytes += up
        self.down_bytes += down
        if tunnel.is_over:
            self.remove(tunnel, Plain.close)
        else:
            if up or down:
                tunnel.touched = self._loop.time()
            if tunnel.up.can_go_on or (tunnel.down.can_go_on and not tunnel.held_s):
                self._enqueue(tunnel)
        return up + down

    def _hold(self, tunnel: Tunnel) -> bool:
        """Whether the target's first bytes have to wait, so that no read of the client's brings them with its head.

        kube-apiserver takes such bytes for an error. Over TLS they are in another record, and so in another read.
        """
        if not tunnel.target.readable:
            return True
        unread = array.array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(tunnel.client.sock, termios.TIOCOUTQ, unread)  # unix(7): SIOCOUTQ, what the peer has not read
        if not unread[0]:
            tunnel.held_s = 0.0
            return False
        self._loop.call_later(tunnel.held_s, self._look_again, tunnel)
        tunnel.held_s = min(tunnel.held_s * 2, _HELD_CAP_S)
        return True

    def _look_again(self, tunnel: Tunnel) -> None:
        if tunnel.held_s and tunnel.client.sock.fileno() in self._tunnels:
            self._enqueue(tunnel)

    def remove(self, tunnel: Tunnel, close: Callable[[Plain], None]) -> None:
        """End a tunnel, both ends in the same way."""
        for end in (tunnel.client, tunnel.target):
            if self._tunnels.pop(end.sock.fileno(), None) is not None:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(end.sock.fileno())
                close(end)
        if tunnel.is_queued:
            self._queue.remove(tunnel)
            tunnel.is_queued = False
        tunnel.on_closed()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            for tunnel in self.all():
                quiet_s = self._loop.time() - tunnel.touched
                is_half = tunnel.up.is_over or tunnel.down.is_over
                is_gone = tunnel.client.is_gone or tunnel.target.is_gone
                if (is_half and quiet_s > HALF_CLOSED_S) or (is_gone and quiet_s > GONE_S):
                    self.remove(tunnel, Plain.abort)
