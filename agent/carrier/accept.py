"""The server's TLS listener: from an accepted connection to a stream in the hub, or away with a counted cause.

    accept -> TLS 1.3, client certificate verified -> identity of this control plane -> request head -> 101 -> hub
    |----------------- a stranger: at most 64 -----------------|---- a guest: at most 4 per identity ----|

Where tokens are let in, a client without a certificate stays a stranger until the daemon has judged the token in its head.

Every step has a time limit, every crowd a size. Who is turned away after TLS reads the cause in a status line.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl

from agent.carrier import tls
from agent.carrier.api import SYMBOLIC_TARGET, ListenConfig
from agent.carrier.bearer import Holder, Inquiries, token_of
from agent.carrier.connect import SocketAddress
from agent.carrier.crowd import Room, Visitor
from agent.carrier.dial import Link
from agent.carrier.hub import Hub
from agent.carrier.sockets import set_mark, tune_tcp
from agent.carrier.turned import Turnaways
from agent.carrier.upgrade import (
    BadHead,
    Rejection,
    Request,
    RequestReader,
    accept_head,
    field,
    judge_certificate,
    judge_request,
    malformed,
    reject_head,
)
from agent.errors import HostError
from agent.run import spawn

log = logging.getLogger("rhizome.carrier.listener")

TLS_TIMEOUT_S = 5.0
HEAD_TIMEOUT_S = 5.0
BACKLOG = 4096
ACCEPTS_PER_TURN = 32
#: The kernel keeps connections to itself that have sent nothing, for so long (tcp(7), TCP_DEFER_ACCEPT). 0: off.
DEFER_ACCEPT_S = 5
#: A connection that has spoken is left alone for so long, however many wait: all clients come at once after a restart, and
#: who is pushed out in the middle of a handshake only comes again.
YOUNG_S = 1.0
CROWDED_REST_S = 0.1
GUESTS_PER_IDENTITY = 4
#: Without file descriptors or memory accept fails at once, again and again: then it rests for so long.
REST_S = 0.5
#: A refusal is followed by reading what the peer still sends, or the kernel's RST would overtake the words.
LINGER_S, LINGER_BYTES = 1.0, 64 * 1024


class _TurnedAway(Exception):
    """Internal: the cause to count and the words to log. `answer` is sent to the peer before the end."""

    def __init__(self, cause: str, words: str, answer: bytes = b"") -> None:
        super().__init__(words)
        self.cause = cause
        self.answer = answer

    @classmethod
    def by(cls, rejection: Rejection) -> _TurnedAway:
        return cls(rejection.cause, rejection.words, reject_head(rejection))


class Listener:
    """Listens as soon as it is made, with a running loop. Raises HostError for an address, ConfigError for the files."""

    def __init__(self, config: ListenConfig, hub: Hub, turned: Turnaways, inquiries: Inquiries) -> None:
        self._hub = hub
        self._turned = turned
        self._inquiries = inquiries
        self._config = config
        self._credentials = tls.Credentials(config.tls, server_side=True, optional=config.tokens)
        self._credentials.context()
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._strangers = Room(config.max_unauthenticated)
        self._guests: dict[str, Room] = {}
        self._visits: set[Visitor] = set()
        self._listen(config)

    def reconfigure(self, config: ListenConfig) -> None:
        """Open what is new, then close what is gone; an address in both is never closed. Raises like the constructor."""
        credentials = tls.Credentials(config.tls, server_side=True, optional=config.tokens)
        credentials.context()
        self._listen(config)
        self._credentials = credentials
        self._config = config
        self._strangers.limit = config.max_unauthenticated

    def close(self) -> None:
        for address in tuple(self._sockets):
            self._shut(address)
        for visitor in self._visits:
            if visitor.task is not None:
                visitor.task.cancel()

    # Listening

    def _listen(self, config: ListenConfig) -> None:
        obsolete = self._sockets.keys() - set(config.addresses)
        try:
            fresh = self._bind(config)
        except HostError:
            if not obsolete:
                raise
            # [::] and 0.0.0.0 exclude each other on one port: what is to go may be in the way of what is to come.
            for address in obsolete:
                self._shut(address)
            fresh, obsolete = self._bind(config), set()
        for address in obsolete:
            self._shut(address)
        for address, sock in fresh.items():
            self._sockets[address] = sock
            self._resume(address)
            log.info("listening on %s port %d", *address, extra={"event": "listener.open"})

    def _bind(self, config: ListenConfig) -> dict[tuple[str, int], socket.socket]:
        fresh: dict[tuple[str, int], socket.socket] = {}
        for address in config.addresses:
            if address in self._sockets:
                continue
            try:
                fresh[address] = _bind(address, config.addresses)
            except OSError as exc:
                for sock in fresh.values():
                    sock.close()
                words = f"cannot listen on {address[0]} port {address[1]}: {exc.strerror}"
                raise HostError(words, exc.errno or 0) from exc
        return fresh

    def _shut(self, address: tuple[str, int]) -> None:
        sock = self._sockets.pop(address)
        asyncio.get_running_loop().remove_reader(sock.fileno())
        sock.close()

    def _resume(self, address: tuple[str, int]) -> None:
        if (sock := self._sockets.get(address)) is not None:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._on_acceptable, address)

    def _rest(self, address: tuple[str, int], delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sockets[address].fileno())
        loop.call_later(delay_s, self._resume, address)

    def _on_acceptable(self, address: tuple[str, int]) -> None:
        listening = self._sockets[address]
        for turn in range(ACCEPTS_PER_TURN):
            if self._strangers.is_full:
                if turn:
                    return  # called again if there is one more; nobody is pushed out for nobody
                if not self._make_place():
                    # They wait in the kernel: until somebody leaves, or one is old enough to be pushed out.
                    self._rest(address, CROWDED_REST_S)
                    return
            try:
                sock, peer = listening.accept()
            except BlockingIOError:
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as exc:
                cause = "files" if exc.errno in (errno.EMFILE, errno.ENFILE) else "resources"
                self._turned.count(cause, "everybody", f"cannot accept: {exc.strerror}; trying again in {REST_S} s")
                self._rest(address, REST_S)
                return
            self._welcome(sock, str(SocketAddress(sock.family, peer)))

    def _make_place(self) -> bool:
        leaving = self._strangers.who_has_to_go(before=_now() - YOUNG_S)
        if leaving is None:
            return False
        words = f"more than {self._strangers.limit} connections at once that showed no certificate"
        self._push_out(self._strangers, leaving, words)
        return True

    def _push_out(self, room: Room, visitor: Visitor, words: str) -> None:
        assert visitor.task is not None
        room.leave(visitor)
        visitor.task.cancel()
        if not visitor.turned:
            self._turned.count("pressure", visitor.peer, words)

    def _admit(self, visitor: Visitor) -> None:
        """It is a stranger no more; whoever waits for its place may come."""
        was_full = self._strangers.is_full
        self._strangers.leave(visitor)
        if was_full:
            for address in self._sockets:
                self._resume(address)

    def _welcome(self, sock: socket.socket, peer: str) -> None:
        visitor = Visitor(sock, peer, _now())
        try:
            sock.setblocking(False)
            tune_tcp(sock)
            with contextlib.suppress(BlockingIOError):
                visitor.silent = not sock.recv(1, socket.MSG_PEEK)
        except OSError:
            # It is gone already.
            sock.close()
            self._turned.count("closed", peer, "it closed before the TLS handshake")
            return
        self._strangers.enter(visitor)
        visitor.task = spawn(self._visit(visitor), name=f"visit {peer}")
        visitor.task.add_done_callback(lambda _: self._see_off(visitor))
        self._visits.add(visitor)

    def _see_off(self, visitor: Visitor) -> None:
        # A callback of the task and not a `finally` in it: a task that is cancelled before its first step never runs.
        self._visits.discard(visitor)
        self._admit(visitor)
        if not visitor.seated:
            visitor.sock.close()

    # One visit

    async def _visit(self, visitor: Visitor) -> None:
        try:
            await self._receive(visitor)
        except _TurnedAway as exc:
            visitor.turned = True
            self._turned.count(exc.cause, visitor.peer, str(exc))
            await _say_goodbye(visitor.sock, exc.answer)
        except OSError as exc:
            self._turned.count("closed", visitor.peer, exc.strerror or str(exc) or type(exc).__name__)

    async def _receive(self, visitor: Visitor) -> None:
        stream = await self._shake_hands(visitor)
        ends_at = tls.certificate_ends_at(stream)
        if ends_at is None:
            request = await _read_head(stream)
            holder = await self._judge_token(visitor, request)
            await self._be_guest(visitor, stream, holder, request)
            return
        identity = judge_certificate(tls.uri_names(stream), self._config.control_plane)
        if isinstance(identity, Rejection):
            raise _TurnedAway.by(identity)
        await self._be_guest(visitor, stream, Holder(identity, ends_at), None)

    async def _judge_token(self, visitor: Visitor, request: Request) -> Holder:
        verdict = judge_request(request, self._config.wireguard_port)
        if isinstance(verdict, Rejection):
            raise _TurnedAway.by(verdict)  # before anybody is asked
        token = token_of(request)
        if isinstance(token, Rejection):
            raise _TurnedAway.by(token)
        holder = await self._inquiries.ask(token, visitor.peer, self._config.control_plane)
        if isinstance(holder, Rejection):
            raise _TurnedAway.by(holder)
        return holder

    async def _be_guest(self, visitor: Visitor, stream: ssl.SSLSocket, holder: Holder, request: Request | None) -> None:
        """From a proven identity to a stream. `request`: its head, when it was read already."""
        identity, by_certificate = holder.identity, request is None
        self._admit(visitor)
        guests = self._guests.setdefault(str(identity), Room(GUESTS_PER_IDENTITY))
        if guests.is_full and (leaving := guests.who_has_to_go(before=_now())) is not None:
            self._push_out(guests, leaving, f"more than {GUESTS_PER_IDENTITY} connections of {identity} at once")
        guests.enter(visitor)
        try:
            if request is None:
                request = await _read_head(stream)
            verdict = judge_request(request, self._config.wireguard_port)
            if isinstance(verdict, Rejection):
                raise _TurnedAway.by(verdict)
            if by_certificate and field(request.headers, "authorization") is not None:
                words = "you showed a certificate and a token: one of them says who you are, leave out the other"
                raise _TurnedAway.by(Rejection(400, "two_credentials", words, "http_request_denied"))
            port = self._config.port_of(verdict.target)
            if port is None:
                words = f"there is no device {verdict.target} any more, ask for {SYMBOLIC_TARGET}"
                raise _TurnedAway.by(Rejection(403, "target", words, "destination_ip_prohibited"))
            self._prepare(str(identity), port)
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                await tls.send(stream, accept_head(verdict.version))
            visitor.seated = True
            proven = str(identity), visitor.peer, "accepted", verdict.version, holder.ends_at, holder.ticket
            link = Link(stream, request.rest, *proven, port)
            await self._hub.take(link)
        finally:
            guests.leave(visitor)
            if not guests:
                self._guests.pop(str(identity), None)

    async def _shake_hands(self, visitor: Visitor) -> ssl.SSLSocket:
        try:
            async with asyncio.timeout(TLS_TIMEOUT_S):
                await tls.readable(visitor.sock)
                visitor.silent = False
                visitor.sock = stream = tls.wrap(self._credentials.context(), visitor.sock)
                await tls.handshake(stream)
                return stream
        except TimeoutError as exc:
            words = "it said nothing" if visitor.silent else "it did not finish the TLS handshake"
            raise _TurnedAway("timeout_tls", f"{words} within {TLS_TIMEOUT_S:g} s") from exc
        except OSError as exc:
            failure = tls.server_failure(exc)
            raise _TurnedAway(failure.cause, failure.words) from exc

    def _prepare(self, identity: str, port: int) -> None:
        try:
            self._hub.prepare(identity, port)
        except HostError as exc:
            rejection = Rejection(503, "full", str(exc), "connection_limit_reached")
            raise _TurnedAway.by(rejection) from exc


async def _read_head(stream: ssl.SSLSocket) -> Request:
    reader = RequestReader()
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            while data := await tls.receive(stream):
                if (request := reader.feed(data)) is not None:
                    return request
    except TimeoutError as exc:
        words = f"no complete request within {HEAD_TIMEOUT_S:g} s"
        raise _TurnedAway.by(Rejection(408, "timeout_head", words, "http_request_error")) from exc
    except BadHead as exc:
        raise _TurnedAway.by(malformed(exc)) from exc
    except OSError as exc:
        # TLS 1.3: a client that does not like our certificate says so only now.
        refused = tls.refusal_of_us(exc)
        if refused is not None:
            raise _TurnedAway("refused_us", refused.words) from exc
        raise
    raise _TurnedAway("closed", "it closed before its request was complete")


async def _say_goodbye(sock: socket.socket, answer: bytes) -> None:
    """Send the answer, end our side, and read until the peer ends its own, within LINGER_S."""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(LINGER_S):
            if isinstance(sock, ssl.SSLSocket) and answer:
                await tls.send(sock, answer)
            sock.shutdown(socket.SHUT_WR)
            left = LINGER_BYTES
            while left > 0:
                await tls.readable(sock)
                # Below TLS: after a failed handshake there is nobody to decrypt it, and nobody wants it.
                data = socket.socket.recv(sock, 16 * 1024)
                if not data:
                    return
                left -= len(data)


def _bind(address: tuple[str, int], all_addresses: tuple[tuple[str, int], ...]) -> socket.socket:
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
        set_mark(sock)  # a SYN-ACK carries the listener's, and must not be routed into the tunnel either
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _now() -> float:
    return asyncio.get_running_loop().time()
