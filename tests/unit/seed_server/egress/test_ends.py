"""TLS over a non-blocking socket: half-closes in both directions, cut streams, and no buffer kept by an idle end."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.carrier import tls
from seed_server.egress.ends import READ_BYTES, Plain, Secure
from tests.unit.seed_server.egress.conftest import Pki

BULK = bytes(range(256)) * 2048
#: What a read brings when the other side has ended; None would be "not now".
END = memoryview(b"")


@dataclass
class Pair:
    """The server's end, and a client made of BIOs, which can half-close like Go's (Python's SSLSocket cannot)."""

    end: Secure
    client: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    sock: socket.socket

    def push(self) -> None:
        if self.outgoing.pending:
            self.sock.sendall(self.outgoing.read())

    def pull(self) -> None:
        try:
            while data := self.sock.recv(1 << 20):
                self.incoming.write(data)
            self.incoming.write_eof()
        except BlockingIOError:
            pass

    def say(self, data: bytes) -> None:
        self.client.write(data)
        self.push()

    def end_writing(self) -> None:
        with pytest.raises(ssl.SSLError):
            self.client.unwrap()
        self.push()

    def hear(self) -> bytes:
        self.pull()
        heard = b""
        while True:
            try:
                data = self.client.read(1 << 20)
            except ssl.SSLWantReadError:
                return heard
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                return heard + b"<end>"
            heard += data


@pytest.fixture
def pair(pki: Pki) -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    context = ssl.create_default_context(cafile=pki.client.ca)
    context.load_cert_chain(pki.client.certificate, pki.client.key)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="vpn-seed-server")
    end = Secure(ours, tls.Credentials(pki.server, server_side=True).context())
    pair = Pair(end, client, incoming, outgoing, theirs)
    while True:
        try:
            client.do_handshake()
            pair.push()
            if end.handshake():
                break
        except ssl.SSLWantReadError:
            pair.push()
            end.handshake()
            pair.pull()
    yield pair
    end.close()
    theirs.close()


def test_bytes_cross(pair: Pair) -> None:
    pair.say(b"ping")
    assert bytes(pair.end.read() or b"") == b"ping"
    assert pair.end.read() is None
    assert not pair.end.readable
    assert pair.end.write(memoryview(b"pong")) == 4
    assert pair.hear() == b"pong"


def test_bulk_is_read_whole_and_nothing_is_kept(pair: Pair) -> None:
    pair.client.write(BULK[:READ_BYTES])
    left, read = memoryview(pair.outgoing.read()), bytearray()
    while left:
        left = left[pair.sock.send(left[:100_000]) :]
        while (data := pair.end.read()) is not None:
            read += data
    assert bytes(read) == BULK[:READ_BYTES]
    assert pair.end._incoming.pending < 16 * 1024 + 512


def test_after_the_clients_end_we_may_still_speak(pair: Pair) -> None:
    pair.say(b"last")
    pair.end_writing()
    assert bytes(pair.end.read() or b"") == b"last"
    assert pair.end.read() == END
    pair.end.write(memoryview(b"late answer"))
    assert pair.hear() == b"late answer"
    assert pair.end.end()
    assert pair.hear() == b"<end>"


def test_after_our_end_the_client_may_still_speak(pair: Pair) -> None:
    pair.say(b"early")  # waits unread while we end
    pair.end.write(memoryview(b"bye"))
    assert pair.end.end()
    assert pair.hear() == b"bye<end>"
    pair.say(b"late")
    heard = b""
    while (data := pair.end.read()) is not None:
        heard += bytes(data)
    assert heard == b"earlylate"
    pair.client.unwrap()
    pair.push()
    assert pair.end.read() == END


def test_a_cut_stream_is_no_end(pair: Pair) -> None:
    pair.say(b"half of it")
    pair.sock.shutdown(socket.SHUT_WR)
    assert bytes(pair.end.read() or b"") == b"half of it"
    with pytest.raises(ConnectionResetError):
        pair.end.read()


def test_what_the_socket_does_not_take_waits_and_nothing_more_is_taken(pair: Pair) -> None:
    pair.end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert pair.end.write(memoryview(BULK)) == len(BULK)
    assert not pair.end.flush()
    assert not pair.end.writable
    assert pair.end.write(memoryview(b"more")) == 0
    assert not pair.end.end()
    heard = b""
    while not heard.endswith(b"<end>"):
        heard += pair.hear()
        pair.end.end()
    assert heard == BULK + b"<end>"


def test_plain_ends() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    end = Plain(ours)
    assert end.read() is None
    theirs.sendall(b"x")
    assert bytes(end.read() or b"") == b"x"
    while (taken := end.write(memoryview(BULK))) == len(BULK):
        pass
    assert taken < len(BULK)
    assert not end.writable
    theirs.shutdown(socket.SHUT_WR)
    assert end.read() == END
    end.abort()
    theirs.close()
