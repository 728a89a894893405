"""The egress proxy's listeners: from an accepted connection to a complete head.

TCP:   accept -> TLS 1.3, client certificate verified -> head      |  at most `max_heads` at once, each for HEAD_TIMEOUT_S
Unix:  accept -> head                                              |  at most `max_heads` at once, each for HEAD_TIMEOUT_S
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import ssl
from pathlib import Path

from agent.carrier import tls
from agent.carrier.crowd import Room, Visitor
from agent.carrier.upgrade import BadHead, Request, RequestReader
from agent.errors import ConfigError, HostError
from agent.identity import Identity, Role
from agent.run import spawn
from seed_server.egress.api import EgressConfig, UnixListen
from seed_server.egress.dial import tune
from seed_server.egress.ends import UNIX_READ_BYTES, Plain, Secure
from seed_server.egress.proxy import Proxy
from seed_server.egress.verdict import Denied, Failure, Stage, bad_request, forbidden

log = logging.getLogger("rhizome.egress.front")

HEAD_TIMEOUT_S = 5.0
BACKLOG = 4096
#: The kernel keeps connections to itself that have sent nothing, for so long (tcp(7), TCP_DEFER_ACCEPT).
DEFER_ACCEPT_S = 5
ACCEPTS_PER_TURN = 32
#: A connection that has spoken is left alone for so long, however many wait.
YOUNG_S = 1.0
CROWDED_REST_S = 0.1
#: Without file descriptors or memory accept fails at once, again and again: then it rests for so long.
REST_S = 0.5

#: What is listened on: an address and port, or a Unix socket's path.
_Place = tuple[str, int] | str


class Front:
    """Listens from `configure` on. Raises HostError for an address, ConfigError for the certificate files."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._credentials: tls.Credentials | None = None
        self._listening: dict[_Place, socket.socket] = {}
        self._rooms = {True: Room(0), False: Room(0)}  # of Unix sockets, and of TCP
        self._unix: tuple[UnixListen, int] | None = None

    @property
    def heads(self) -> int:
        """Connections without a complete head."""
        return sum(len(room) for room in self._rooms.values())

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """As bound."""
        tcp = [sock for place, sock in self._listening.items() if not isinstance(place, str)]
        return tuple((str(name[0]), int(name[1])) for name in (sock.getsockname() for sock in tcp))

    def configure(self, config: EgressConfig) -> None:
        """Open what is new, then close what is gone. Raises HostError, ConfigError; then what was open stays."""
        credentials = None
        if config.addresses:
            if config.tls is None:
                raise ConfigError("TCP without TLS is not served: kube-apiserver cannot speak it")
            credentials = tls.Credentials(config.tls, server_side=True)
            credentials.context()
        wanted: set[_Place] = set(config.addresses)
        fresh = self._bind(config)
        for place in self._listening.keys() - wanted - ({config.unix.path} if config.unix else set()):
            self._shut(place)
        for place, sock in fresh.items():
            if place in self._listening:
                self._shut(place)
            self._listening[place] = sock
            self._resume(place)
            log.info("egress listens on %s", place, extra={"event": "egress.listening"})
        if config.unix is not None and config.unix.path in fresh:
            self._unix = config.unix, Path(config.unix.path).stat().st_ino
        self._credentials = credentials
        for room in self._rooms.values():
            room.limit = config.max_heads

    def close(self) -> None:
        """Listen no more. Heads that are complete go on."""
        for place in tuple(self._listening):
            self._shut(place)

    # Listening

    def _bind(self, config: EgressConfig) -> dict[_Place, socket.socket]:
        fresh: dict[_Place, socket.socket] = {}
        try:
            for address in config.addresses:
                if address not in self._listening:
                    fresh[address] = _tcp(address, config.addresses)
            if config.unix is not None and not self._has(config.unix):
                fresh[config.unix.path] = _unix(config.unix)
        except OSError as exc:
            for sock in fresh.values():
                sock.close()
            where = exc.filename or "one of its addresses"
            raise HostError(f"egress cannot listen on {where}: {exc.strerror}", exc.errno or 0) from exc
        return fresh

    def _has(self, wanted: UnixListen) -> bool:
        """Whether the socket is still ours: somebody may have removed or replaced it."""
        if self._unix is None or self._unix[0] != wanted:
            return False
        with contextlib.suppress(OSError):
            return Path(wanted.path).stat().st_ino == self._unix[1]
        return False

    def _shut(self, place: _Place) -> None:
        sock = self._listening.pop(place)
        asyncio.get_running_loop().remove_reader(sock.fileno())
        sock.close()
        if isinstance(place, str) and self._unix is not None and self._unix[0].path == place:
            with contextlib.suppress(OSError):
                if Path(place).stat().st_ino == self._unix[1]:
                    Path(place).unlink()
            self._unix = None

    def _resume(self, place: _Place) -> None:
        if (sock := self._listening.get(place)) is not None:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._on_acceptable, place)

    def _rest(self, place: _Place, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening[place].fileno())
        loop.call_later(delay_s, self._resume, place)

    def _on_acceptable(self, place: _Place) -> None:
        listening, room = self._listening[place], self._rooms[isinstance(place, str)]
        for _ in range(ACCEPTS_PER_TURN):
            if room.is_full and not self._make_place(room):
                self._rest(place, CROWDED_REST_S)
                return
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                words = f"cannot accept: {os.strerror(exc.errno or 0)}; trying again in {REST_S} s"
                log.warning("%s", words, extra={"event": "egress.accept_failed"})
                self._proxy.tally.failed(Failure(503, Stage.HEAD, "resources", words), "")
                self._rest(place, REST_S)
                return
            self._welcome(sock, room)

    def _make_place(self, room: Room) -> bool:
        leaving = room.who_has_to_go(before=_now() - YOUNG_S)
        if leaving is None or leaving.task is None:
            return False
        room.leave(leaving)
        leaving.task.cancel()
        words = f"more than {room.limit} connections at once without a request"
        self._proxy.tally.failed(Failure(503, Stage.HEAD, "pressure", words), "")
        return True

    def _welcome(self, sock: socket.socket, room: Room) -> None:
        sock.setblocking(False)
        visitor = Visitor(sock, "", _now())
        room.enter(visitor)
        visitor.task = spawn(self._visit(visitor, room), name="egress.visit")
        visitor.task.add_done_callback(lambda _: self._see_off(visitor, room))

    def _see_off(self, visitor: Visitor, room: Room) -> None:
        # A callback of the task and not a `finally` in it: a task that is cancelled before its first step never runs.
        room.leave(visitor)
        if not visitor.seated:
            visitor.sock.close()

    # One visit

    async def _visit(self, visitor: Visitor, room: Room) -> None:
        is_unix = visitor.sock.family == socket.AF_UNIX
        if is_unix:
            client = Plain(visitor.sock, read_bytes=UNIX_READ_BYTES)
        else:
            if self._credentials is None:
                return  # TLS was turned off since it came
            tune(visitor.sock)
            client = Secure(visitor.sock, self._credentials.context())
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S), Arrivals(client) as arrivals:
                if isinstance(client, Secure):
                    await _shake_hands(client, visitor, arrivals)
                request = await _head(client, visitor, arrivals)
        except Denied as exc:
            failure = exc.failure
        except TimeoutError:
            result = "timeout-silent" if visitor.silent else "timeout"
            failure = Failure(400, Stage.HEAD, result, f"no complete request within {HEAD_TIMEOUT_S:g} s")
        except (ssl.SSLError, OSError) as exc:
            self._proxy.tally.failed(Failure(0, Stage.HEAD, "closed", f"a client left: {exc.strerror or exc}"), "")
            return
        else:
            room.leave(visitor)
            visitor.seated = True
            await self._proxy.serve(client, request)
            return
        visitor.turned = True
        if failure.stage is Stage.TLS or visitor.silent:
            self._proxy.tally.failed(failure, "")
            return
        visitor.seated = True
        await self._proxy.refuse(client, failure)


class Arrivals:
    """Waits for more to read on one socket, again and again, with one registration in the loop."""

    def __init__(self, client: Plain) -> None:
        self._client = client
        self._event = asyncio.Event()

    async def __aenter__(self) -> Arrivals:
        asyncio.get_running_loop().add_reader(self._client.sock.fileno(), self._event.set)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._client.sock.fileno())

    async def more(self) -> None:
        """To be called when a read would block, and not before: then no event is missed and none comes for nothing."""
        self._event.clear()
        await self._event.wait()
        self._client.readable = True


async def _shake_hands(client: Secure, visitor: Visitor, arrivals: Arrivals) -> None:
    """Raises Denied, OSError."""
    try:
        while not client.handshake():
            await arrivals.more()
            visitor.silent = False
    except OSError as exc:
        failure = tls.server_failure(exc)
        raise Denied(Failure(0, Stage.TLS, failure.cause, f"a client's TLS handshake: {failure.words}")) from exc
    certificate = client.tls.getpeercert() or {}
    for pair in certificate.get("subjectAltName", ()):
        if isinstance(pair, tuple) and pair[0] == "URI" and _is_shoots(str(pair[1])):
            raise Denied(forbidden("identity", "a shoot client's certificate opens no way into the shoot"))


def _is_shoots(uri: str) -> bool:
    try:
        return Identity.parse(uri).role is Role.SHOOT_CLIENT
    except ValueError:
        return False


async def _head(client: Plain, visitor: Visitor, arrivals: Arrivals) -> Request:
    """Raises Denied, OSError."""
    reader = RequestReader()
    while True:
        data = client.read()
        if data is None:
            await arrivals.more()
            continue
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it closed before its request was complete")
        visitor.silent = False
        try:
            request = reader.feed(bytes(data))
        except BadHead as exc:
            raise Denied(bad_request(str(exc))) from exc
        if request is not None:
            return request


def _tcp(address: tuple[str, int], all_addresses: tuple[tuple[str, int], ...]) -> socket.socket:
    host, port = address
    v6 = ipaddress.ip_address(host).version == 6
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S)
        if v6:
            # [::] serves IPv4 too, unless that has an address of its own on this port.
            only = any(":" not in other and other_port == port for other, other_port in all_addresses)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, exc.strerror, f"{host} port {port}") from exc
    return sock


def _unix(place: UnixListen) -> socket.socket:
    """Under a name of its own first: who finds the socket finds it with its owner and mode."""
    path = Path(place.path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        temporary.unlink(missing_ok=True)
        sock.bind(str(temporary))
        os.chown(temporary, -1 if place.uid is None else place.uid, -1 if place.gid is None else place.gid)
        temporary.chmod(place.mode)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        temporary.replace(path)
    except OSError as exc:
        sock.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(exc.errno, exc.strerror or str(exc), str(path)) from exc
    return sock


def _now() -> float:
    return asyncio.get_running_loop().time()
