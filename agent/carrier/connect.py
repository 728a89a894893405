"""Names to addresses and addresses to one TCP connection, with every address tried (RFC 8305).

A name is looked up again for each attempt, so a changed DNS answer counts from the next one on. Only while DNS is silent the
answer before is used: mostly DNS is behind the same dead path as the server, and is the last to notice that it is back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, TypeVar

from agent.carrier.sockets import set_mark, tune_tcp
from agent.errors import HostError
from agent.run import spawn

LOOKUP_TIMEOUT_S = 5.0
#: After so long without an answer, the addresses of the last one are tried meanwhile.
LOOKUP_PATIENCE_S = 0.5
#: A resolver that hangs keeps a thread for longer than we wait for it; more than these at once are not started.
LOOKUPS_MAX = 4
#: For one address. A SYN that was lost is repeated after 1 s, so a path that comes back meets a fresh one soon.
CONNECT_TIMEOUT_S = 3.0
STAGGER_S = 0.25  # RFC 8305 section 5, Connection Attempt Delay
ADDRESSES_MAX = 16

T = TypeVar("T")

_lookups = threading.BoundedSemaphore(LOOKUPS_MAX)


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """Where to connect: `sockaddr` is what the socket module takes for the family."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        host, port = self.sockaddr[:2]
        if self.family == socket.AF_INET6:
            address = ipaddress.IPv6Address(host)
            return f"{address.ipv4_mapped}:{port}" if address.ipv4_mapped else f"[{host}]:{port}"
        return f"{host}:{port}"


class NoAddress(HostError):
    """A name could not be looked up."""


class FirstHop:
    """What one attempt learns about the first hop for the next: its addresses, and which of them failed when."""

    __slots__ = ("_attempts", "_failed_at", "_known", "_name")

    def __init__(self) -> None:
        self._name: tuple[str, int] | None = None
        self._known: list[SocketAddress] = []
        self._failed_at: dict[SocketAddress, int] = {}
        self._attempts = 0

    def failed(self, address: SocketAddress) -> None:
        """It connected and was of no use. The one that failed longest ago comes first: every replica gets its turn."""
        self._attempts += 1
        self._failed_at[address] = self._attempts

    def succeeded(self) -> None:
        self._failed_at.clear()

    async def connect(self, host: str, port: int) -> tuple[socket.socket, SocketAddress]:
        """A connection to one of the name's addresses. Raises NoAddress, or HostError naming every address's failure."""
        if self._name != (host, port):
            self._name, self._known = (host, port), []
        looking = spawn(_outcome(lookup(host, port)), name=f"lookup {host}")
        connecting: asyncio.Task[tuple[socket.socket, SocketAddress] | HostError] | None = None
        try:
            await asyncio.wait((looking,), timeout=LOOKUP_PATIENCE_S if self._known else None)
            if not looking.done():
                connecting = spawn(_outcome(connect(self._in_turn(self._known))), name=f"connect {host} without DNS")
                await asyncio.wait((looking, connecting), return_when=asyncio.FIRST_COMPLETED)
                if connecting.done() or not self._is_news(looking.result()):
                    winner, connecting = connecting, None
                    return _value(await winner)
            self._known = _value(looking.result())
        finally:
            looking.cancel()
            if connecting is not None:
                _abandon(connecting)
        return await connect(self._in_turn(self._known))

    def _is_news(self, answer: list[SocketAddress] | HostError) -> bool:
        return not isinstance(answer, HostError) and set(answer) != set(self._known)

    def _in_turn(self, addresses: Sequence[SocketAddress]) -> list[SocketAddress]:
        return sorted(addresses, key=lambda address: self._failed_at.get(address, -1))


async def _outcome(work: Awaitable[T]) -> T | HostError:
    """Errors are results: a failed attempt is no failed task."""
    try:
        return await work
    except HostError as exc:
        return exc


def _value(outcome: T | HostError) -> T:
    if isinstance(outcome, HostError):
        raise outcome
    return outcome


async def lookup(host: str, port: int) -> list[SocketAddress]:
    """The addresses of a name (or of an address in text), families in turn. Raises NoAddress, within LOOKUP_TIMEOUT_S."""
    if _is_address(host):
        return _ask(host, port)  # no resolver is asked, so no thread has to wait for one
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[SocketAddress]] = loop.create_future()
    if not _lookups.acquire(blocking=False):
        raise NoAddress(f"cannot look up {host}: {LOOKUPS_MAX} earlier lookups still wait for the resolver")

    def settle(found: list[SocketAddress] | OSError | ValueError) -> None:
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: list[SocketAddress] | OSError | ValueError
        try:
            found = _ask(host, port)
        except (OSError, ValueError) as exc:
            found = exc
        finally:
            _lookups.release()
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:
            return  # the loop has ended meanwhile, and with it whoever asked

    # A thread of its own and not an executor's: those are waited for at exit, and a hanging resolver must not stop an exit.
    threading.Thread(target=ask, name=f"lookup {host}", daemon=True).start()
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            return await answer
    except TimeoutError as exc:
        raise NoAddress(f"cannot look up {host}: no answer from the resolver within {LOOKUP_TIMEOUT_S:g} s") from exc
    except OSError as exc:
        raise NoAddress(f"cannot look up {host}: {exc.strerror}", exc.errno or 0) from exc
    except ValueError as exc:
        raise NoAddress(f"cannot look up {host}: not a DNS name") from exc


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ask(host: str, port: int) -> list[SocketAddress]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    found = list(dict.fromkeys(SocketAddress(family, sockaddr) for family, _, _, _, sockaddr in answers))
    first = [address for address in found if address.family == found[0].family]
    second = [address for address in found if address.family != found[0].family]
    in_turn = chain.from_iterable(zip_longest(first, second))
    return [address for address in in_turn if address is not None][:ADDRESSES_MAX]


async def connect(addresses: Sequence[SocketAddress]) -> tuple[socket.socket, SocketAddress]:
    """A connection to the first address that answers; the next one is tried STAGGER_S later, or as soon as one fails.

    The socket is non-blocking and has the carrier's options and mark. Raises HostError that names every address's failure.
    """
    failures: list[str] = []
    running: dict[asyncio.Task[socket.socket | OSError], SocketAddress] = {}
    waiting = list(addresses)
    try:
        while waiting or running:
            if waiting:
                address = waiting.pop(0)
                running[spawn(_attempt(address), name=f"connect {address}")] = address
            done, _ = await asyncio.wait(
                running, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                result = task.result()
                if not isinstance(result, OSError):
                    return result, running.pop(task)
                failures.append(f"{running.pop(task)}: {_words(result)}")
    finally:
        for task in running:
            _abandon(task)
    raise HostError("; ".join(failures) or "no address to connect to")


async def _attempt(address: SocketAddress) -> socket.socket | OSError:
    """Errors are results: a failed attempt is no failed task."""
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as exc:
        return exc
    try:
        tune_tcp(sock)
        set_mark(sock)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
    except OSError as exc:
        sock.close()
        return exc
    except BaseException:
        sock.close()
        raise
    return sock


def _abandon(task: asyncio.Task[Any]) -> None:
    """End an attempt that lost the race; one that connected in the same moment is closed."""
    if not task.done():
        task.cancel()
    elif not task.cancelled():
        result = task.result()
        found = result[0] if isinstance(result, tuple) else result
        if isinstance(found, socket.socket):
            found.close()


def _words(exc: OSError) -> str:
    if isinstance(exc, TimeoutError) and exc.errno is None:
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    # asyncio's own strerror repeats the address.
    return os.strerror(exc.errno) if exc.errno else type(exc).__name__
