"""TLS 1.3 of the carrier: contexts that follow their files, non-blocking operations, and failures in words.

Both sides verify each other. In TLS 1.3 a client is done before the server has looked at its certificate, so a server's
refusal arrives with the client's first read; `refusal_of_us` tells it from other ends of a stream.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agent.carrier.api import TlsFiles
from agent.errors import ConfigError

log = logging.getLogger("rhizome.carrier.tls")

T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int] | None, ...]


class Credentials:
    """A TLS context made from files, made anew when they change.

    Files that cannot be used (half-written, a key that does not belong to the certificate) leave the last context in
    place, and the log says so once per change.
    """

    def __init__(self, files: TlsFiles, *, server_side: bool, optional: bool = False) -> None:
        """`optional`: a server that lets clients without a certificate finish the handshake."""
        self._files = files
        self._server_side = server_side
        self._verify = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
        self._stamp: _Stamp | None = None
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The context of the files as they are now. Raises ConfigError when there never was a usable one."""
        if self.refresh() or self._context is not None:
            assert self._context is not None
            return self._context
        # Nothing to fall back on: load again for the sake of the error.
        return _load(self._files, self._server_side, self._verify)

    def refresh(self) -> bool:
        """Look at the files. True when they have changed since the last look and are usable."""
        stamp = tuple(_stamp(path) for path in _paths(self._files))
        if stamp == self._stamp:
            return False
        first, self._stamp = self._context is None, stamp
        try:
            self._context = _load(self._files, self._server_side, self._verify)
        except ConfigError as exc:
            if not first:
                log.warning("keeping the last good certificate: %s", exc, extra={"event": "tls.kept"})
            return False
        if not first:
            log.info("certificate files were read again", extra={"event": "tls.reloaded"})
        return True


def _paths(files: TlsFiles) -> tuple[str, ...]:
    return tuple(path for path in (files.ca, files.certificate, files.key) if path)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _load(files: TlsFiles, server_side: bool, verify: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = verify
    context.set_alpn_protocols(["http/1.1"])
    if server_side:
        context.num_tickets = 0  # a stream lives for an hour; tickets would only be bytes before the 101
    for path in _paths(files):
        try:
            Path(path).read_bytes()
        except OSError as exc:
            raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        context.load_verify_locations(cafile=files.ca)
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"{files.ca}: no CA certificate in PEM format in there") from exc
    if not files.certificate and not server_side:
        return context
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    except (ssl.SSLError, OSError) as exc:
        if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{files.key} is not the key of {files.certificate}") from exc
        raise ConfigError(f"{files.certificate} and {files.key}: not a certificate and its key in PEM format") from exc
    return context


def _no_passphrase() -> bytes:
    # Without this callback OpenSSL would ask the terminal.
    raise ConfigError("the private key is encrypted: nobody is here to type a passphrase, decrypt the file")


# Operations on a non-blocking SSLSocket. Whoever calls them puts a time limit around.


async def readable(sock: socket.socket) -> None:
    """Wait until a socket has something to read (or has ended)."""
    loop = asyncio.get_running_loop()
    await _wait(sock.fileno(), loop.add_reader, loop.remove_reader)


async def writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await _wait(sock.fileno(), loop.add_writer, loop.remove_writer)


async def _wait(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready = asyncio.get_running_loop().create_future()

    def on_ready() -> None:
        remove(fd)
        if not ready.done():
            ready.set_result(None)

    add(fd, on_ready)
    try:
        await ready
    finally:
        remove(fd)


async def _drive(stream: ssl.SSLSocket, operation: Callable[[], T]) -> T:
    while True:
        try:
            return operation()
        except ssl.SSLWantReadError:
            await readable(stream)
        except ssl.SSLWantWriteError:
            await writable(stream)


def wrap(context: ssl.SSLContext, sock: socket.socket, *, server_name: str | None = None) -> ssl.SSLSocket:
    """TLS over a connected socket, as the server when there is no `server_name`. `sock` is used up when this succeeds.

    Raises OSError when the connection has ended meanwhile, ValueError for a name that cannot be sent as SNI.
    """
    # Over either of these wrap_socket would raise too, and leak the socket.
    sock.getpeername()
    if server_name is not None and b"\0" in server_name.encode("idna"):
        raise ValueError("a zero byte")
    return context.wrap_socket(
        sock, server_side=server_name is None, server_hostname=server_name, do_handshake_on_connect=False
    )


async def handshake(stream: ssl.SSLSocket) -> None:
    """Raises ssl.SSLError or OSError."""
    await _drive(stream, stream.do_handshake)


async def receive(stream: ssl.SSLSocket, size: int = 16 * 1024) -> bytes:
    """Some bytes, b"" at the end. Raises ssl.SSLError or OSError."""
    return await _drive(stream, lambda: stream.recv(size))


async def send(stream: ssl.SSLSocket, data: bytes) -> None:
    """Send all of at most 16 KiB, one record. Raises ssl.SSLError or OSError."""
    await _drive(stream, lambda: stream.send(data))


def certificate_ends_at(stream: ssl.SSLSocket) -> float | None:
    """When the peer's verified certificate ends, as time of day; None when it has shown none."""
    certificate = stream.getpeercert()
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"]))) if certificate else None


def uri_names(stream: ssl.SSLSocket) -> tuple[str, ...]:
    """The URI SANs of the peer's verified certificate."""
    certificate = stream.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    return tuple(str(pair[1]) for pair in names if isinstance(pair, tuple) and pair[0] == "URI")


# Failures in words


@dataclass(frozen=True, slots=True)
class Failure:
    """`cause` is a short fixed word. `final`: trying again soon will not help, somebody has to change something."""

    cause: str
    words: str
    final: bool = True


#: OpenSSL's X509_V_ERR_*, as far as people meet them: cause, and what is wrong with a certificate.
_VERIFY = {
    9: ("not_yet_valid", "is not valid yet (compare the clocks)"),
    10: ("expired", "has expired"),
    18: ("self_signed", "is self-signed"),
    19: ("unknown_ca", "was issued by another CA"),
    20: ("unknown_ca", "was issued by another CA"),
    21: ("unknown_ca", "was issued by another CA"),
    23: ("revoked", "is revoked"),
    26: ("purpose", "was not issued for this side (extended key usage)"),
    62: ("name", "is for another name"),
    64: ("name", "is for another address"),
}

#: Alerts of RFC 8446 section 6.2 by the end of OpenSSL's name for them, and what they say about our certificate.
_ALERTS = {
    "UNKNOWN_CA": ("unknown_ca", "it does not know the CA that issued it"),
    "CERTIFICATE_EXPIRED": ("expired", "it has expired, says the other side's clock"),
    "CERTIFICATE_REQUIRED": ("no_certificate", "it got none"),
    "CERTIFICATE_REVOKED": ("revoked", "it is revoked"),
    "UNSUPPORTED_CERTIFICATE": ("purpose", "it was not issued for this side (extended key usage)"),
    "BAD_CERTIFICATE": ("bad_certificate", "it is not valid (not yet, or not for this)"),
    "CERTIFICATE_UNKNOWN": ("bad_certificate", "it is not acceptable"),
    "ACCESS_DENIED": ("denied", "its holder has no access"),
    "DECRYPT_ERROR": ("bad_certificate", "its signature does not verify"),
}


def refusal_of_us(exc: OSError) -> Failure | None:
    """What a fatal alert says about our own certificate; None for any other error."""
    reason = _reason(exc)
    for name, (cause, words) in _ALERTS.items():
        if reason.endswith(f"ALERT_{name}"):
            return Failure(cause, f"the other side refused our certificate: {words}")
    return None


def client_failure(exc: OSError, server_name: str, ca: str) -> Failure:
    """Why a client's handshake with `server_name` failed."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        cause, words = _VERIFY.get(exc.verify_code, ("untrusted", f"is not acceptable: {exc.verify_message}"))
        return Failure(cause, f"the server's certificate {words} (wanted: {server_name}, issued by a CA in {ca})")
    if (refused := refusal_of_us(exc)) is not None:
        return refused
    if _is_end(exc):
        words = (
            f"closed during the handshake: an SNI proxy that knows no {server_name}, or whose server is away, does that"
        )
        return Failure("closed", words, final=False)
    reason = _reason(exc)
    if reason.endswith("UNRECOGNIZED_NAME"):
        return Failure("unknown_name", f"the other side serves no {server_name}")
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return Failure("not_tls", "the other side does not speak TLS: a plain HTTP port?")
    if reason.endswith(("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL")):
        return Failure("tls_version", "the other side does not speak TLS 1.3")
    return Failure("tls", f"the handshake failed: {_plain(exc)}", final=False)


def server_failure(exc: OSError) -> Failure:
    """Why a server's handshake with somebody failed."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        cause, words = _VERIFY.get(exc.verify_code, ("untrusted", f"is not acceptable: {exc.verify_message}"))
        return Failure(cause, f"its certificate {words}")
    reason = _reason(exc)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Failure("no_certificate", "it sent no certificate")
    if (refused := refusal_of_us(exc)) is not None:
        return Failure("refused_us", refused.words)
    if _is_end(exc):
        return Failure("closed", "it closed during the handshake")
    if reason.endswith(("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL")):
        return Failure("tls_version", "it does not speak TLS 1.3")
    return Failure("not_tls", f"it does not speak TLS as we do: {_plain(exc)}")


def _is_end(exc: OSError) -> bool:
    # SSLZeroReturnError is what an EOF looks like to Python 3.11.2, the one of Debian 12.
    ends = ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError
    closed = isinstance(exc, ends) or exc.errno == errno.ENOTCONN
    return closed or _reason(exc).startswith("Closed before TLS handshake")


def _reason(exc: OSError) -> str:
    """OpenSSL's name for an error, empty for errors that are not OpenSSL's."""
    return str(getattr(exc, "reason", None) or "")


def _plain(exc: OSError) -> str:
    return _reason(exc).replace("_", " ").lower() or exc.strerror or type(exc).__name__
