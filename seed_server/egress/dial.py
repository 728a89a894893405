"""One connection to one checked address, within the request's time, and no longer than the address can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from agent.carrier.sockets import set_mark
from agent.model import TUNNEL_MARK, IPAddress
from agent.run import spawn
from seed_server.egress.policy import Way
from seed_server.egress.verdict import Denied, Failure, Stage, tunnel_down

#: Idle streams of hours (exec, logs -f) go on; a peer that is gone for good is noticed within four minutes.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 20, 9

STAGGER_S = 0.25  # RFC 8305 section 5, Connection Attempt Delay

_REFUSED = (errno.ECONNREFUSED, errno.ECONNRESET)
_NO_DEVICE = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN)


class Dialler:
    """Dials, and gives up at once what turns out to be unreachable meanwhile."""

    def __init__(self, fault: Callable[[IPAddress], str]) -> None:
        """`fault` says why an address in the shoot cannot be reached just now; empty when it can."""
        self.fault = fault
        self._waiting: dict[asyncio.Future[None], IPAddress] = {}

    def on_reach_changed(self) -> None:
        """Connections that are being made to what cannot be reached any more fail now."""
        for future, address in tuple(self._waiting.items()):
            if not future.done() and (words := self.fault(address)):
                future.set_exception(Denied(tunnel_down(words)))

    async def first(
        self, addresses: Sequence[tuple[IPAddress, Way]], port: int, devices: tuple[str, ...], until: float
    ) -> socket.socket:
        """A connection to the first address that answers; the next one is tried STAGGER_S later, or as soon as one fails.

        Raises Denied with the first failure.
        """
        if len(addresses) == 1:
            return await self.dial(addresses[0][0], port, addresses[0][1], devices, until)
        failures: list[Failure] = []
        waiting, running = list(addresses), set[asyncio.Task[socket.socket | Failure]]()
        try:
            while waiting or running:
                if waiting:
                    address, way = waiting.pop(0)
                    running.add(spawn(self._attempt(address, port, way, devices, until), name=f"dial {address}"))
                pause = STAGGER_S if waiting else None
                done, running = await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                results = [task.result() for task in done]
                failures += [result for result in results if isinstance(result, Failure)]
                if winners := [result for result in results if isinstance(result, socket.socket)]:
                    for late in winners[1:]:
                        late.close()
                    return winners[0]
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_discard)
        raise Denied(failures[0])

    async def _attempt(
        self, address: IPAddress, port: int, way: Way, devices: tuple[str, ...], until: float
    ) -> socket.socket | Failure:
        """Failures are results: a failed attempt is no failed task."""
        try:
            return await self.dial(address, port, way, devices, until)
        except Denied as exc:
            return exc.failure

    async def dial(
        self, address: IPAddress, port: int, way: Way, devices: tuple[str, ...], until: float
    ) -> socket.socket:
        """A connected non-blocking socket. `until` is a time of the loop. Raises Denied."""
        if way is Way.TUNNEL and (words := self.fault(address)):
            raise Denied(tunnel_down(words))
        where = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
        loop = asyncio.get_running_loop()
        began = loop.time()
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as exc:
            raise Denied(Failure(503, Stage.DIAL, "resources", f"no socket: {os.strerror(exc.errno or 0)}")) from exc
        try:
            tune(sock)
            if way is Way.SEED:
                set_mark(sock)
            else:
                keep_in_tunnel(sock, devices)
            code = sock.connect_ex((str(address), port))
            if code == errno.EINPROGRESS and not _is_writable(sock):
                with self._noted(address if way is Way.TUNNEL else None) as future:
                    await _connected(loop, sock, future, until)
            if code == errno.EINPROGRESS:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
        except TimeoutError as exc:
            sock.close()
            if exc.errno is None:
                words = f"no answer from {where} within {loop.time() - began:.1f} s"
            else:
                words = f"no answer from {where}: {os.strerror(exc.errno)}"
            raise Denied(Failure(504, Stage.DIAL, "timeout", words)) from exc
        except OSError as exc:
            sock.close()
            raise Denied(_failure(exc.errno or 0, where, devices)) from exc
        except BaseException:
            sock.close()
            raise
        return sock

    @contextmanager
    def _noted(self, address: IPAddress | None) -> Iterator[asyncio.Future[None]]:
        future = asyncio.get_running_loop().create_future()
        if address is not None:
            self._waiting[future] = address
        try:
            yield future
        finally:
            self._waiting.pop(future, None)


def keep_in_tunnel(sock: socket.socket, devices: tuple[str, ...]) -> None:
    """Whatever the routing table says: the shoot is dialled through the tunnel or not at all. Raises OSError, ENODEV where none of
    these devices is there."""
    if not devices:
        return
    if not any(_exists(device) for device in devices):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TUNNEL_MARK)


def _exists(device: str) -> bool:
    try:
        return socket.if_nametoindex(device) > 0
    except OSError:
        return False


def _discard(task: asyncio.Task[socket.socket | Failure]) -> None:
    """An attempt that lost the race but connected in the same moment."""
    if not task.cancelled() and isinstance(sock := task.result(), socket.socket):
        sock.close()


async def _connected(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, future: asyncio.Future[None], until: float
) -> None:
    """Raises TimeoutError, or what somebody else puts into the future."""

    def settle(error: Exception | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(None)

    timer = loop.call_at(until, settle, TimeoutError())
    loop.add_writer(sock.fileno(), settle, None)
    try:
        await future
    finally:
        timer.cancel()
        loop.remove_writer(sock.fileno())


def _is_writable(sock: socket.socket) -> bool:
    """Whether a connection is made already: on this host it takes no time, and the loop's way of waiting takes some."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def _failure(code: int, where: str, devices: tuple[str, ...]) -> Failure:
    if code in _REFUSED:
        return Failure(502, Stage.DIAL, "refused", f"{where} refused the connection")
    if code in _NO_DEVICE:
        return Failure(
            503, Stage.TUNNEL, "tunnel-down", f"tunnel down: there is no device {' or '.join(devices)}".rstrip()
        )
    if code in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL):
        return Failure(503, Stage.DIAL, "resources", f"cannot dial {where}: {os.strerror(code)}")
    return Failure(502, Stage.DIAL, "unreachable", f"{where} cannot be reached: {os.strerror(code)}")


def tune(sock: socket.socket) -> None:
    """No delay for small writes, and keep-alives. Buffers stay with the kernel, which knows the path."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
