"""WireGuard's cross-platform configuration protocol, the text that wireguard-go speaks. Pure: text in, values out.

https://www.wireguard.com/xplatform/: lines `key=value`, an empty line ends a request or a reply, the last line of a reply
is `errno=`. Keys are in hex. A reply to `get=1` contains the private key, so no error here quotes a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from agent.host import RemoveAllowedIPs, RemovePeer, SetDevice, SetPeer, WireGuardStep
from agent.model import (
    DeviceState,
    Endpoint,
    IPNetwork,
    Peer,
    PeerStatus,
    PresharedKey,
    PrivateKey,
    PublicKey,
)

GET = b"get=1\n\n"
#: What ends every request and every reply.
END = b"\n\n"

_NO_KEY = bytes(32)


class UapiError(ValueError):
    """A refusal, or a reply that is none. `errno` is positive as everywhere but on this wire, 0 for a malformed reply."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


def set_requests(
    steps: Sequence[WireGuardStep], *, throwaway_key: Callable[[], bytes], removes_single: bool
) -> Iterator[bytes]:
    """The requests that do `steps`, in order; all steps are of one device.

    `removes_single`: this wireguard-go knows `allowed_ip=-CIDR` (since 2025-05); `throwaway_key` gives the public key of
    a peer that never existed, to take prefixes away from older ones.
    """
    lines: list[str] = []
    for step in steps:
        if isinstance(step, SetDevice):
            if lines:  # a device's settings come first in a request, or they would be read as the last peer's
                yield _request(lines)
            lines = list(_device(step))
        elif isinstance(step, RemoveAllowedIPs):
            lines += _removal(step, throwaway_key, removes_single)
        else:
            lines += _peer(step)
    if lines:
        yield _request(lines)


def feature_request(throwaway_key: bytes) -> bytes:
    """A request that changes nothing; it is refused by a wireguard-go that does not know `allowed_ip=-CIDR`."""
    return _request([f"public_key={throwaway_key.hex()}", "update_only=true", "allowed_ip=-192.0.2.0/32"])


def _request(lines: Iterable[str]) -> bytes:
    return ("\n".join(("set=1", *lines)) + "\n\n").encode()


def _device(step: SetDevice) -> Iterator[str]:
    if step.private_key is not None:
        yield f"private_key={step.private_key.raw.hex()}"
    if step.listen_port is not None:
        yield f"listen_port={step.listen_port}"
    if step.fwmark is not None:
        yield f"fwmark={step.fwmark}"


def _peer(step: RemovePeer | SetPeer) -> Iterator[str]:
    yield f"public_key={step.public_key.raw.hex()}"
    if isinstance(step, RemovePeer):
        yield "remove=true"
        return
    if step.preshared_key is not None:
        yield f"preshared_key={step.preshared_key.raw.hex()}"
    if step.endpoint is not None:
        yield f"endpoint={step.endpoint}"
    if step.persistent_keepalive_s is not None:
        yield f"persistent_keepalive_interval={step.persistent_keepalive_s}"
    for network in step.add_allowed_ips:
        yield f"allowed_ip={network}"


def _removal(step: RemoveAllowedIPs, throwaway_key: Callable[[], bytes], removes_single: bool) -> Iterator[str]:
    if removes_single:
        yield f"public_key={step.public_key.raw.hex()}"
        yield "update_only=true"
        for network in step.allowed_ips:
            yield f"allowed_ip=-{network}"
        return
    key = throwaway_key().hex()
    yield f"public_key={key}"
    for network in step.allowed_ips:
        yield f"allowed_ip={network}"
    yield f"public_key={key}"
    yield "remove=true"


def check(reply: bytes) -> None:
    """Raises UapiError when a reply to `set=1` is a refusal, or not a reply."""
    for _ in _pairs(reply):
        raise UapiError("a reply to set=1 holds nothing but its errno")


@dataclass(slots=True)
class _PeerLines:
    """What the lines of a peer have said so far."""

    endpoint: Endpoint | None = None
    preshared_key: bytes = _NO_KEY
    keepalive_s: int = 0
    handshake_s: int = 0
    handshake_ns: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    allowed_ips: list[IPNetwork] = field(default_factory=list)


def parse(reply: bytes) -> DeviceState:
    """The device in a reply to `get=1`. Unknown keys are skipped. Raises UapiError."""
    private_key, listen_port, fwmark = _NO_KEY, 0, 0
    peers: dict[bytes, _PeerLines] = {}
    peer: _PeerLines | None = None
    for number, (key, value) in enumerate(_pairs(reply), 1):
        try:
            if key == "public_key":
                peer = peers.setdefault(_key(value), _PeerLines())
            elif peer is not None:
                _peer_line(peer, key, value)
            elif key == "private_key":
                private_key = _key(value)
            elif key == "listen_port":
                listen_port = _number(value, 0xFFFF)
            elif key == "fwmark":
                fwmark = _number(value, 0xFFFFFFFF)
        except ValueError:
            # The cause quotes the value, which may be a key: it must not travel along.
            raise UapiError(f"line {number} of the reply, {_name(key)}: not a value of this key") from None
    return DeviceState(
        private_key=PrivateKey(private_key) if private_key != _NO_KEY else None,
        listen_port=listen_port,
        fwmark=fwmark,
        peers=frozenset(
            Peer(
                PublicKey(raw),
                frozenset(lines.allowed_ips),
                lines.endpoint,
                PresharedKey(lines.preshared_key) if lines.preshared_key != _NO_KEY else None,
                lines.keepalive_s,
            )
            for raw, lines in peers.items()
        ),
        statuses=tuple(
            PeerStatus(PublicKey(raw), lines.endpoint, _handshake(lines), lines.rx_bytes, lines.tx_bytes)
            for raw, lines in sorted(peers.items())
        ),
    )


def _peer_line(peer: _PeerLines, key: str, value: str) -> None:
    if key == "allowed_ip":
        peer.allowed_ips.append(_network(value))
    elif key == "preshared_key":
        peer.preshared_key = _key(value)
    elif key == "endpoint":
        peer.endpoint = _endpoint(value)
    elif key == "persistent_keepalive_interval":
        peer.keepalive_s = _number(value, 0xFFFF)
    elif key == "last_handshake_time_sec":
        peer.handshake_s = _number(value, 1 << 62)
    elif key == "last_handshake_time_nsec":
        peer.handshake_ns = _number(value, 999_999_999)
    elif key == "rx_bytes":
        peer.rx_bytes = _number(value, 1 << 64)
    elif key == "tx_bytes":
        peer.tx_bytes = _number(value, 1 << 64)


def _pairs(reply: bytes) -> Iterator[tuple[str, str]]:
    """Key and value of each line before `errno=0`. Raises UapiError for a refusal and for text of another form."""
    if not reply.endswith(END):
        raise UapiError("the reply breaks off")
    try:
        lines = reply[: -len(END)].decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise UapiError("the reply is not ASCII text") from None
    last, _, code = lines.pop().partition("=")
    if last != "errno":
        raise UapiError("the reply does not end with its errno")
    try:
        errno = abs(int(code[:12]))  # wireguard-go sends it negative
    except ValueError:
        raise UapiError("the reply's errno is not a number") from None
    if errno:
        raise UapiError(f"wireguard-go refused with errno {errno}", errno)
    for number, line in enumerate(lines, 1):
        key, equals, value = line.partition("=")
        if not equals or key == "errno":
            raise UapiError(f"line {number} of the reply is not key=value")
        yield key, value


def _name(key: str) -> str:
    """A key that is fit for an error message: garbage could be a value."""
    return key if key.replace("_", "").isalpha() and len(key) < 32 else "an unknown key"


def _key(value: str) -> bytes:
    raw = bytes.fromhex(value)
    if len(value) != 64 or len(raw) != 32:
        raise ValueError("length")
    return raw


def _number(value: str, highest: int) -> int:
    if not value.isdecimal() or len(value) > 20 or int(value) > highest:
        raise ValueError("number")
    return int(value)


@lru_cache(maxsize=1 << 15)  # a device with thousands of peers is read again and again
def _network(value: str) -> IPNetwork:
    if "/" not in value or "%" in value:
        raise ValueError("network")
    return IPv6Network(value) if ":" in value else IPv4Network(value)


@lru_cache(maxsize=1 << 13)
def _endpoint(value: str) -> Endpoint:
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    return Endpoint(IPv6Address(host[1:-1]) if bracketed else IPv4Address(host), _number(port, 0xFFFF))


def _handshake(peer: _PeerLines) -> float | None:
    return peer.handshake_s + peer.handshake_ns / 1e9 if peer.handshake_s else None
