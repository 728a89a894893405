"""The HTTP heads of the carrier: `Upgrade: connect-udp` (RFC 9298 section 3) and CONNECT (RFC 9110 section 9.3.6).

Sans-IO: bytes in, values out; h11 knows the grammar, this module knows what the heads mean to us. A head has at most
HEAD_MAX_BYTES; the bytes behind it belong to the tunnel and are kept in `rest`.

    client                                                                                server
      GET /.well-known/masque/udp/wg/51820/ HTTP/1.1   Upgrade: connect-udp, Rhizome-Version: 1  ->
      <-  101 Switching Protocols                      Upgrade: connect-udp, Rhizome-Version: 1
      or  403 <the cause in words>                     Proxy-Status: rhizome; error=...; details="the cause in words"
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import h11

from agent.carrier.api import SYMBOLIC_TARGET
from agent.errors import BadMessage
from agent.identity import Identity, Role

HEAD_MAX_BYTES = 16 * 1024
#: Our extensions to RFC 9298 (capsules for control, ping, pong and ack), as numbered in the header Rhizome-Version.
VERSION = 1
TOKEN = "connect-udp"
WELL_KNOWN = "/.well-known/masque/udp/"
#: The server's targets are its WireGuard devices, of which there are two while its key is replaced. A client does not know their
#: ports and says a name: this one, or this one with the key's mark; the port beside it means nothing then.
SYMBOLIC_HOST = SYMBOLIC_TARGET
SYMBOLIC_PORT = 51820
_SYMBOLIC = re.compile(rf"{SYMBOLIC_HOST}(-[0-9a-f]{{8}})?", re.ASCII)
_WORDS_MAX = 256

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head. Header names are in lower case. `rest`: what the client sent behind it (early capsules)."""

    method: str
    target: str
    http_version: str
    headers: Headers
    rest: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """A final answer's head (no 1xx other than 101). `rest`: what was received behind it."""

    status: int
    reason: str
    headers: Headers
    rest: bytes


class BadHead(BadMessage):
    """A request head that is not HTTP/1.1 or too long; `status` is the answer it deserves."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RequestReader:
    """Reads one request head, in pieces of any size."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        self._received = 0

    def feed(self, data: bytes) -> Request | None:
        """None: more is needed. `data` is not empty (the end of the stream is the caller's to see). Raises BadHead."""
        self._received += len(data)
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as exc:
            raise BadHead(_of_h11(exc), exc.error_status_hint) from exc
        if not isinstance(event, h11.Request):
            return None
        rest, _ = self._http.trailing_data
        if self._received - len(rest) > HEAD_MAX_BYTES:
            raise BadHead(f"a head of more than {HEAD_MAX_BYTES} bytes", 431)
        return Request(
            _text(event.method), _text(event.target), _text(event.http_version), _headers(event.headers), rest
        )


class Exchange:
    """One request of ours and the answer to it. `request` is what to send. Raises ValueError for what HTTP cannot carry."""

    def __init__(self, method: str, target: str, headers: Sequence[tuple[str, str]]) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX_BYTES)
        self._received = 0
        try:
            head = self._http.send(h11.Request(method=method, target=target, headers=list(headers)))
            self.request = (head or b"") + (self._http.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError:
            # h11 repeats the value in its message, and a value may be a secret.
            raise ValueError("a header name or value that HTTP cannot carry (RFC 9110 section 5)") from None

    def feed(self, data: bytes) -> Response | None:
        """None: more is needed. `data` is not empty. Raises BadMessage."""
        self._received += len(data)
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                rest, _ = self._http.trailing_data
                if self._received - len(rest) > HEAD_MAX_BYTES:
                    raise BadMessage(f"a head of more than {HEAD_MAX_BYTES} bytes")
                if isinstance(event, h11.Response):
                    break
                if isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        break
                    continue
                return None
        except h11.RemoteProtocolError as exc:
            raise BadMessage(_of_h11(exc)) from exc
        return Response(event.status_code, printable(_text(event.reason)), _headers(event.headers), rest)


def field(headers: Headers, name: str) -> str | None:
    """A header's value, several of them joined as RFC 9110 section 5.3 has it; None when it is absent."""
    values = [value for key, value in headers if key == name]
    return ", ".join(values) if values else None


def printable(text: str) -> str:
    """Words of a stranger, made fit for a log line and a terminal."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_WORDS_MAX]).strip()


# The client's side


def upgrade_exchange(authority: str, token: str | None = None, target: str = SYMBOLIC_HOST) -> Exchange:
    """The request for the tunnel. `authority` is the server's name and port, `token` goes where there is no certificate, `target`
    names the server's device."""
    bearer = (("Authorization", f"Bearer {token}"),) if token is not None else ()
    return Exchange(
        "GET",
        f"{WELL_KNOWN}{target}/{SYMBOLIC_PORT}/",
        (
            ("Host", authority),
            ("Connection", "Upgrade"),
            ("Upgrade", TOKEN),
            ("Capsule-Protocol", "?1"),
            ("Rhizome-Version", str(VERSION)),
            *bearer,
        ),
    )


def connect_exchange(authority: str, headers: Sequence[tuple[str, str]], credentials: str | None) -> Exchange:
    """CONNECT to `authority` (`host:port`, IPv6 in brackets). `credentials` is `user:password` for Basic (RFC 7617)."""
    own = [("Host", authority), *headers]
    if credentials is not None:
        own.append(("Proxy-Authorization", "Basic " + base64.b64encode(credentials.encode()).decode()))
    return Exchange("CONNECT", authority, own)


def agreed_version(response: Response) -> int:
    """The version of our extensions that a 101 agreed on; 0: a conforming RFC 9298 server that is not Rhizome.

    Raises BadMessage for any answer that does not open the tunnel, with the server's words.
    """
    if response.status != 101:
        raise BadMessage(in_words(response))
    if not _has_token(response.headers, "connection", "upgrade") or not _has_token(response.headers, "upgrade", TOKEN):
        raise BadMessage(f"answered 101 without `Connection: Upgrade` and `Upgrade: {TOKEN}`")
    if _has_content(response.headers):
        raise BadMessage("answered 101 with Content-Length or Transfer-Encoding (RFC 9297 section 3.2)")
    text = field(response.headers, "rhizome-version")
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,3}", text, re.ASCII) or not 1 <= int(text) <= VERSION:
        raise BadMessage(f"answered Rhizome-Version {printable(text)}, which was not offered")
    return int(text)


def in_words(response: Response) -> str:
    """`503 Service Unavailable (Proxy-Status: envoy; error=connection_refused)`."""
    status = field(response.headers, "proxy-status")
    words = f"{response.status} {response.reason}".strip()
    return f"{words} (Proxy-Status: {printable(status)})" if status else words


# The server's side


@dataclass(frozen=True, slots=True)
class Accepted:
    """`version` 0: a conforming RFC 9298 peer without our extensions, which gets datagrams and nothing else. `target` is the name
    of the device."""

    version: int
    target: str = SYMBOLIC_HOST


@dataclass(frozen=True, slots=True)
class Rejection:
    """`cause` is a short fixed word to count by, `words` is for people, `error` a Proxy-Status error type (RFC 9209)."""

    status: int
    cause: str
    words: str
    error: str


def judge_certificate(uris: Sequence[str], control_plane: str) -> Identity | Rejection:
    """Who a verified certificate says its holder is: it has one URI SAN, a client's of this control plane."""
    if len(uris) != 1:
        return _denied("identity", f"your certificate has {len(uris)} URI names, it must have exactly one SPIFFE ID")
    return judge_identity(uris[0], control_plane, "certificate")


def judge_identity(uri: str, control_plane: str, credential: str) -> Identity | Rejection:
    """Whether whom a good credential (a `certificate` or a `token`) names may be a client of this control plane."""
    try:
        identity = Identity.parse(uri)
    except ValueError as exc:
        return _denied("identity", f"your {credential}'s URI name {printable(uri)} is not a client's: {exc}")
    if identity.control_plane != control_plane:
        return _denied(
            "control_plane",
            f"your {credential} is of control plane {identity.control_plane}, this server belongs to {control_plane}",
        )
    if identity.role in (Role.SEED_SERVER, Role.OBSERVER):
        return _denied("role", f"your {credential} is a {identity.role.value}'s, it may not act as a client")
    return identity


def judge_request(request: Request, wireguard_port: int) -> Accepted | Rejection:
    """Whether a request gets a tunnel to a WireGuard device of ours: by name, or the one at 127.0.0.1:`wireguard_port`."""
    if request.http_version != "1.1":
        return _malformed(f"HTTP/{request.http_version} cannot be upgraded, speak HTTP/1.1")
    path = re.sub(r"^https?://[^/]*", "", request.target, flags=re.IGNORECASE)
    if not path.startswith(WELL_KNOWN):
        return Rejection(404, "path", f"there is nothing but {WELL_KNOWN}", "http_request_error")
    if request.method != "GET":
        return _malformed(f"the method is GET, not {printable(request.method)} (RFC 9298 section 3.2)")
    if not _has_token(request.headers, "connection", "upgrade") or not _has_token(request.headers, "upgrade", TOKEN):
        return Rejection(426, "upgrade", f"ask for `Connection: Upgrade` and `Upgrade: {TOKEN}`", "http_request_error")
    if _has_content(request.headers):
        return _malformed("Content-Length and Transfer-Encoding do not belong here (RFC 9297 section 3.2)")
    segments = path[len(WELL_KNOWN) :].split("/")
    if len(segments) != 3 or segments[2] or not re.fullmatch(r"[0-9]{1,5}", segments[1], re.ASCII):
        return _malformed(f"the path is {WELL_KNOWN}HOST/PORT/")
    host, port = unquote(segments[0]).lower(), int(segments[1])
    if not host or not 1 <= port <= 65535:
        return _malformed(f"the path is {WELL_KNOWN}HOST/PORT/")
    named = _SYMBOLIC.fullmatch(host) is not None
    if not named and (host, port) != ("127.0.0.1", wireguard_port):
        words = f"this is no open proxy: the only target is {SYMBOLIC_HOST}"
        return Rejection(403, "target", words, "destination_ip_prohibited")
    return _judge_version(field(request.headers, "rhizome-version"), host if named else SYMBOLIC_HOST)


_VERSION = re.compile(r"([0-9]{1,3})(?:; ?min=([0-9]{1,3}))?(?:; ?[a-z][a-z0-9=]*)*", re.ASCII)


def _judge_version(text: str | None, target: str) -> Accepted | Rejection:
    """`3` speaks versions 1 to 3, `3;min=2` needs 2 at least."""
    if text is None:
        return Accepted(0, target)
    match = _VERSION.fullmatch(text)
    if match is None or int(match[1]) < 1:
        return _malformed(f"Rhizome-Version {printable(text)} is not a number, or a number and ;min=")
    if match[2] is not None and int(match[2]) > VERSION:
        words = f"you need Rhizome-Version {int(match[2])}, this server speaks {VERSION}: upgrade the server first"
        return Rejection(501, "version", words, "http_request_denied")
    return Accepted(min(int(match[1]), VERSION), target)


def accept_head(version: int) -> bytes:
    """The 101 (RFC 9298 section 3.3)."""
    extension = f"Rhizome-Version: {version}\r\n" if version else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        f"Connection: Upgrade\r\nUpgrade: {TOKEN}\r\nCapsule-Protocol: ?1\r\n{extension}\r\n"
    ).encode()


def reject_head(rejection: Rejection) -> bytes:
    """A refusal whose cause stands in the reason phrase, and in Proxy-Status for proxies that rewrite the former."""
    words = printable(rejection.words)
    details = words.replace("\\", "\\\\").replace('"', '\\"')
    upgrade = f"Upgrade: {TOKEN}\r\n" if rejection.status == 426 else ""
    return (
        f"HTTP/1.1 {rejection.status} {words}\r\n"
        f'Proxy-Status: rhizome; error={rejection.error}; details="{details}"\r\n'
        f"{upgrade}Connection: close\r\nContent-Length: 0\r\n\r\n"
    ).encode("ascii")


def malformed(exc: BadHead) -> Rejection:
    """The answer to a head that could not be read."""
    cause = "head_too_long" if exc.status == 431 else "malformed"
    return Rejection(exc.status, cause, str(exc), "http_request_error")


def _malformed(words: str) -> Rejection:
    return Rejection(400, "malformed", words, "http_request_error")


def _denied(cause: str, words: str) -> Rejection:
    return Rejection(403, cause, words, "http_request_denied")


def _has_token(headers: Headers, name: str, token: str) -> bool:
    return token in [word.strip().lower() for word in (field(headers, name) or "").split(",")]


def _has_content(headers: Headers) -> bool:
    return field(headers, "content-length") is not None or field(headers, "transfer-encoding") is not None


def _headers(headers: object) -> Headers:
    assert isinstance(headers, Sequence)
    return tuple((_text(name), _text(value)) for name, value in headers)


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _of_h11(exc: h11.RemoteProtocolError) -> str:
    if exc.error_status_hint == 431:
        return f"a head of more than {HEAD_MAX_BYTES} bytes"
    # Behind the colon h11 repeats the line, which may be the one with the token.
    return f"not an HTTP/1.1 head: {printable(str(exc).partition(':')[0])}"
