"""A WireGuard peer in Python, so that one process can be thousands of nodes (whitepaper section 5.4).

Sans-IO: datagrams in, datagrams and IP packets out. It initiates handshakes and never answers one, keeps one session, and
knows no cookies: under load the server drops an initiation, and the next one comes. Slow, and no example of how to guard keys.
"""

from __future__ import annotations

import hmac
import os
import struct
import time
from dataclasses import dataclass
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.canary import PORT
from agent.model import PresharedKey, PrivateKey, PublicKey

_CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_LABEL_MAC1 = b"mac1----"
_INITIATION, _RESPONSE, _DATA = b"\1\0\0\0", b"\2\0\0\0", b"\4\0\0\0"
_TAI64 = 2**62 + 10
_NO_NONCE = bytes(12)


def _hash(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def _hmac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "blake2s")


def _kdf(key: bytes, data: bytes, count: int) -> list[bytes]:
    secret, block, blocks = _hmac(key, data), b"", []
    for number in range(1, count + 1):
        block = _hmac(secret, block, bytes([number]))
        blocks.append(block)
    return blocks


def _seal(key: bytes, data: bytes, ad: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_NO_NONCE, data, ad)


@dataclass(slots=True)
class _Handshake:
    index: int
    ephemeral: X25519PrivateKey
    chaining: bytes
    hash: bytes


@dataclass(slots=True)
class _Session:
    theirs: int
    sending: ChaCha20Poly1305
    receiving: ChaCha20Poly1305
    counter: int = 0


class WireGuardPeer:
    """The initiator's side of one tunnel to `server`."""

    def __init__(self, key: PrivateKey, server: PublicKey, preshared_key: PresharedKey | None) -> None:
        self._key = X25519PrivateKey.from_private_bytes(key.raw)
        self._public = self._key.public_key().public_bytes_raw()
        self._server = server.raw
        self._psk = preshared_key.raw if preshared_key is not None else bytes(32)
        self._handshake: _Handshake | None = None
        self._session: _Session | None = None

    @property
    def is_up(self) -> bool:
        return self._session is not None

    def initiate(self) -> bytes:
        """The first message of a new handshake (section 5.4.2)."""
        ephemeral = X25519PrivateKey.generate()
        public = ephemeral.public_key().public_bytes_raw()
        server = X25519PublicKey.from_public_bytes(self._server)
        chaining = _hash(_CONSTRUCTION)
        digest = _hash(_hash(_hash(chaining, _IDENTIFIER), self._server), public)
        (chaining,) = _kdf(chaining, public, 1)
        chaining, key = _kdf(chaining, ephemeral.exchange(server), 2)
        static = _seal(key, self._public, digest)
        digest = _hash(digest, static)
        chaining, key = _kdf(chaining, self._key.exchange(server), 2)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        stamp = _seal(key, struct.pack(">QI", _TAI64 + seconds, nanoseconds), digest)
        self._handshake = _Handshake(int.from_bytes(os.urandom(4), "little"), ephemeral, chaining, _hash(digest, stamp))
        message = _INITIATION + struct.pack("<I", self._handshake.index) + public + static + stamp
        mac = blake2s(message, digest_size=16, key=_hash(_LABEL_MAC1, self._server)).digest()
        return message + mac + bytes(16)

    def receive(self, datagram: bytes) -> tuple[bytes, bytes]:
        """(what to send back, the IP packet that came), each empty for nothing. What does not belong here is ignored."""
        kind = datagram[:4]
        if kind == _RESPONSE and len(datagram) == 92:
            return self._finish(datagram), b""
        if kind == _DATA and len(datagram) >= 32 and self._session is not None:
            try:
                return b"", self._session.receiving.decrypt(bytes(4) + datagram[8:16], datagram[16:], None)
            except InvalidTag:
                return b"", b""
        return b"", b""

    def send(self, packet: bytes) -> bytes:
        """An IP packet (empty: a keepalive) as a datagram; empty without a session."""
        session = self._session
        if session is None:
            return b""
        nonce = session.counter.to_bytes(8, "little")
        session.counter += 1
        padded = packet + bytes(-len(packet) % 16)
        return (
            _DATA + struct.pack("<I", session.theirs) + nonce + session.sending.encrypt(bytes(4) + nonce, padded, None)
        )

    def _finish(self, datagram: bytes) -> bytes:
        """The second message (section 5.4.3): there is a session now, and the server may use it once it has heard of us."""
        theirs, ours = struct.unpack_from("<II", datagram, 4)
        state = self._handshake
        if state is None or ours != state.index:
            return b""
        public = datagram[12:44]
        ephemeral = X25519PublicKey.from_public_bytes(public)
        digest = _hash(state.hash, public)
        (chaining,) = _kdf(state.chaining, public, 1)
        (chaining,) = _kdf(chaining, state.ephemeral.exchange(ephemeral), 1)
        (chaining,) = _kdf(chaining, self._key.exchange(ephemeral), 1)
        chaining, tau, key = _kdf(chaining, self._psk, 3)
        try:
            ChaCha20Poly1305(key).decrypt(_NO_NONCE, datagram[44:60], _hash(digest, tau))
        except InvalidTag:
            return b""
        sending, receiving = _kdf(chaining, b"", 2)
        self._handshake = None
        self._session = _Session(theirs, ChaCha20Poly1305(sending), ChaCha20Poly1305(receiving))
        return self.send(b"")


def canary_answer(packet: bytes) -> bytes:
    """The answer to an IPv4 packet with a canary's question, as IP packet; empty for any other packet (agent.canary)."""
    if len(packet) < 40 or packet[0] != 0x45 or packet[9] != 17:
        return b""
    source, target = packet[12:16], packet[16:20]
    source_port, target_port = struct.unpack_from("!HH", packet, 20)
    if target_port != PORT or packet[28:32] != b"rzC?":
        return b""
    body = b"rzC!" + packet[32:36] + bytes(4)
    udp = struct.pack("!HHHH", PORT, source_port, 8 + len(body), 0) + body
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0, target, source)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", total ^ 0xFFFF) + head[12:] + udp
