"""One attempt of a client to reach its server: DNS, TCP, proxies, TLS, upgrade. Each stage fails in words of its own.

    addresses of the first hop (looked up every time) -> the first that connects (RFC 8305)
    -> CONNECT through each proxy -> TLS 1.3 with our certificate, server's name and identity checked -> 101

Nothing is retried here and nothing is kept: a socket that does not become a stream is closed before the error is raised.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from socket import socket
from typing import TypeVar

from agent.carrier import tls
from agent.carrier.api import DialConfig, Proxy
from agent.carrier.bearer import read_token
from agent.carrier.connect import FirstHop, NoAddress, SocketAddress
from agent.carrier.upgrade import (
    Exchange,
    Response,
    agreed_version,
    connect_exchange,
    in_words,
    upgrade_exchange,
)
from agent.errors import BadMessage, ConfigError, HostError, RemoteError

T = TypeVar("T")

PROXY_TIMEOUT_S = 5.0
TLS_TIMEOUT_S = 5.0
UPGRADE_TIMEOUT_S = 5.0
#: An empty capsule of a reserved type, which every peer skips (RFC 9297 section 5.4), sent behind the 101: a server that
#: has another stream of ours knows by it that this one is in use now.
IN_USE = b"\x17\x00"
_READ_BYTES = 16 * 1024
#: Answers after which somebody has to change something first: credentials, a route, a certificate, a version.
_FINAL = frozenset({400, 401, 403, 404, 405, 407, 426, 501})


class Stage(Enum):
    DNS = "dns"
    TCP = "tcp"
    PROXY = "proxy"
    TLS = "tls"
    UPGRADE = "upgrade"


class DialError(RemoteError):
    """An attempt failed. `final`: asking again soon will bring the same answer. `address`: who was reached until then."""

    def __init__(self, stage: Stage, words: str, *, final: bool = False) -> None:
        super().__init__(words)
        self.stage = stage
        self.final = final
        self.address: SocketAddress | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """An open tunnel, not yet pumped: `early` was read behind the head. `version` 0: the peer is not Rhizome.
    `credential_ends_at`: when the peer's certificate or token ends, as time of day, where that matters; `ticket`: see Admit.
    `port`: on the server, that of the WireGuard device."""

    stream: ssl.SSLSocket
    early: bytes
    identity: str
    peer: str
    via: str
    version: int
    credential_ends_at: float | None = None
    ticket: str = ""
    port: int = 0


async def dial(config: DialConfig, credentials: tls.Credentials, hop: FirstHop | None = None) -> Link:
    """A new stream to the server. `hop` is what earlier attempts have learned, and learns from this one.

    Raises DialError; a whole attempt takes at most some 20 s and 5 s more per proxy.
    """
    try:
        context = credentials.context()
    except ConfigError as exc:
        raise DialError(Stage.TLS, str(exc), final=True) from exc
    hop = hop or FirstHop()
    sock, address = await _reach(config, hop)
    try:
        await _through_proxies(config, sock)
        stream, identity = await _secure(config, context, sock)
        sock = stream
        response, version = await _upgrade(config, stream)
        hop.succeeded()
        return Link(stream, response.rest, identity, str(address), via(config), version)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, DialError):
            exc.address = address
            hop.failed(address)
        raise


def via(config: DialConfig) -> str:
    """The path in words."""
    if config.proxies:
        return ", ".join(f"CONNECT {authority(proxy.host, proxy.port)}" for proxy in config.proxies)
    hop = authority(config.host, config.port)
    return f"TLS {hop}" if config.host == config.server_name else f"TLS {hop} (SNI {config.server_name})"


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _reach(config: DialConfig, hop: FirstHop) -> tuple[socket, SocketAddress]:
    first: Proxy | DialConfig = config.proxies[0] if config.proxies else config
    try:
        return await hop.connect(first.host, first.port)
    except NoAddress as exc:
        raise DialError(Stage.DNS, str(exc)) from exc
    except HostError as exc:
        raise DialError(Stage.TCP, str(exc)) from exc


async def _through_proxies(config: DialConfig, sock: socket) -> None:
    hops = [(proxy.host, proxy.port) for proxy in config.proxies[1:]] + [(config.host, config.port)]
    for proxy, (host, port) in zip(config.proxies, hops, strict=False):  # without a proxy there is no hop
        name = f"proxy {authority(proxy.host, proxy.port)}"
        with _stage(Stage.PROXY, name):
            try:
                exchange = connect_exchange(authority(host, port), proxy.headers, _credentials(proxy))
            except (ValueError, ConfigError) as exc:
                raise DialError(Stage.PROXY, f"{name}: {exc}", final=True) from exc
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(PROXY_TIMEOUT_S):
                await loop.sock_sendall(sock, exchange.request)
                response = await _answer(exchange, functools.partial(loop.sock_recv, sock, _READ_BYTES))
        if not 200 <= response.status < 300:
            words = f"{name} answered {in_words(response)} to CONNECT {authority(host, port)}{_hint(response.status)}"
            raise DialError(Stage.PROXY, words, final=response.status in _FINAL)
        if response.rest:
            raise DialError(Stage.PROXY, f"{name} sent bytes of its own into the tunnel", final=True)


def _hint(status: int) -> str:
    hints = {
        407: ": it wants credentials (user:password in a file)",
        403: ": it does not allow this destination, or does not route by this header",
        404: ": it has no route to this destination",
        502: ": it cannot reach the server",
        503: ": the server behind it is away",
        504: ": the server behind it does not answer",
    }
    return hints.get(status, "")


def _credentials(proxy: Proxy) -> str | None:
    """`user:password`. Read at each dial, because passwords rotate. Raises ConfigError."""
    if proxy.credentials_file is None:
        return proxy.credentials
    try:
        text = Path(proxy.credentials_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the credentials in {proxy.credentials_file}: {_strerror(exc)}") from exc
    if ":" not in text or "\n" in text:
        raise ConfigError(f"{proxy.credentials_file} is not one line user:password")
    return text


async def _secure(config: DialConfig, context: ssl.SSLContext, sock: socket) -> tuple[ssl.SSLSocket, str]:
    stream: ssl.SSLSocket | None = None
    try:
        stream = tls.wrap(context, sock, server_name=config.server_name)
        with _stage(Stage.TLS, via(config)):
            async with asyncio.timeout(TLS_TIMEOUT_S):
                await tls.handshake(stream)
        return stream, _server_identity(config, tls.uri_names(stream))
    except BaseException as exc:
        if stream is not None:
            stream.close()
        if isinstance(exc, OSError):
            failure = tls.client_failure(exc, config.server_name, config.tls.ca)
            raise DialError(Stage.TLS, f"{via(config)}: {failure.words}", final=failure.final) from exc
        if isinstance(exc, ValueError):
            words = f"{config.server_name!r} cannot be a server's name: {exc}"
            raise DialError(Stage.TLS, words, final=True) from exc
        raise


def _server_identity(config: DialConfig, names: tuple[str, ...]) -> str:
    if config.expected_identity is not None and config.expected_identity not in names:
        words = f"the server's certificate is for {', '.join(names) or 'nobody'}, not for {config.expected_identity}"
        raise DialError(Stage.TLS, words, final=True)
    return config.expected_identity or (names[0] if names else "")


async def _upgrade(config: DialConfig, stream: ssl.SSLSocket) -> tuple[Response, int]:
    try:
        token = read_token(config.token_file) if config.token_file is not None else None
    except ConfigError as exc:
        raise DialError(Stage.UPGRADE, str(exc), final=True) from exc
    exchange = upgrade_exchange(authority(config.server_name, config.port), token, config.target)
    try:
        with _stage(Stage.UPGRADE, config.server_name):
            async with asyncio.timeout(UPGRADE_TIMEOUT_S):
                await _send_unless_refused(stream, exchange.request)
                response = await _answer(exchange, functools.partial(tls.receive, stream))
                version = _version(response)
                await tls.send(stream, IN_USE)
                return response, version
    except OSError as exc:
        refused = tls.refusal_of_us(exc)
        if refused is not None:
            raise DialError(Stage.TLS, refused.words, final=True) from exc
        words = f"{config.server_name}: {_strerror(exc)} after the TLS handshake (a server that refuses a certificate may do that)"
        raise DialError(Stage.UPGRADE, words) from exc


def _version(response: Response) -> int:
    try:
        return agreed_version(response)
    except BadMessage as exc:
        words = f"the server answered {exc}" if response.status != 101 else f"the server {exc}"
        raise DialError(Stage.UPGRADE, words, final=response.status in _FINAL) from exc


async def _send_unless_refused(stream: ssl.SSLSocket, request: bytes) -> None:
    """Send, and when that fails go on to read: a server that closed because of our certificate has said so before."""
    try:
        await tls.send(stream, request)
    except OSError:  # BrokenPipeError, or SSLEOFError from OpenSSL
        await tls.receive(stream)
        raise


async def _answer(exchange: Exchange, receive: Callable[[], Awaitable[bytes]]) -> Response:
    while data := await receive():
        response = exchange.feed(data)
        if response is not None:
            return response
    raise BadMessage("closed the connection without an answer")


@contextmanager
def _stage(stage: Stage, name: str) -> Iterator[None]:
    """Time limits, broken heads and (before TLS) broken connections become DialErrors of the stage."""
    try:
        yield
    except TimeoutError as exc:
        raise DialError(stage, f"{name}: no answer in time") from exc
    except BadMessage as exc:
        raise DialError(stage, f"{name}: {exc}") from exc
    except OSError as exc:
        if stage is not Stage.PROXY:
            raise
        raise DialError(stage, f"{name}: {_strerror(exc)}") from exc


def _strerror(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__
