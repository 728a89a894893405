"""WireGuard's generic netlink attributes, encoded and decoded in bulk (linux/wireguard.h). Pure: bytes in, values out.

A netlink attribute holds at most 65,535 bytes and all peers of a request live in one attribute, so a batch of steps
becomes several requests; the kernel splits its answers the same way, in the middle of a peer if need be, and `decode`
puts them together again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from agent.host import RemoveAllowedIPs, RemovePeer, SetDevice, SetPeer, WireGuardStep
from agent.model import (
    DeviceState,
    Endpoint,
    IPAddress,
    IPNetwork,
    Peer,
    PeerStatus,
    PresharedKey,
    PrivateKey,
    PublicKey,
)
from agent.nlmsg import attribute

FAMILY_NAME = "wireguard"
VERSION = 1
CMD_GET_DEVICE, CMD_SET_DEVICE = 0, 1

#: Bytes of peers that go into one request; the attribute's hard limit is 65,535.
MAX_PEERS_BYTES = 60_000
#: More than all attributes of a peer but its allowed-ips take, and the removal of a throw-away peer with them.
_PEER_ROOM = 256

_DEVICE_IFNAME, _DEVICE_PRIVATE_KEY, _DEVICE_FLAGS = 2, 3, 5
_DEVICE_LISTEN_PORT, _DEVICE_FWMARK, _DEVICE_PEERS = 6, 7, 8
_PEER_PUBLIC_KEY, _PEER_PRESHARED_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE = 1, 2, 3, 4, 5
_PEER_LAST_HANDSHAKE, _PEER_RX_BYTES, _PEER_TX_BYTES, _PEER_ALLOWED_IPS = 6, 7, 8, 9
_ALLOWED_IP_FAMILY, _ALLOWED_IP_ADDRESS, _ALLOWED_IP_PREFIXLEN = 1, 2, 3

_DEVICE_REPLACE_PEERS = 1
_PEER_REMOVE_ME = 1

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_AF_INET, _AF_INET6 = 2, 10
_NO_KEY = bytes(32)

_HEADER = struct.Struct("=HH")
# One allowed-ip in one go: nest header, family, address, prefix length, each padded to 4 bytes.
_ALLOWED_IP4 = struct.Struct("=HHHHHxxHH4sHHBxxx")
_ALLOWED_IP6 = struct.Struct("=HHHHHxxHH16sHHBxxx")


def entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each attribute, in order. Raises ValueError when a length does not fit."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _HEADER.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise ValueError("a netlink attribute does not fit into its message")
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def get_request(ifname: str) -> bytes:
    """Attributes of the dump request for a device."""
    return attribute(_DEVICE_IFNAME, ifname.encode() + b"\0")


def clear_request(ifname: str) -> bytes:
    """Attributes of the request that takes all peers from a device."""
    return get_request(ifname) + attribute(_DEVICE_FLAGS, struct.pack("=I", _DEVICE_REPLACE_PEERS))


def set_requests(
    steps: Sequence[WireGuardStep],
    *,
    throwaway_key: Callable[[], bytes],
    scope_index: Callable[[str], int],
) -> Iterator[bytes]:
    """Attributes of the requests that do `steps`, in order; all steps are of one device.

    `throwaway_key` gives the public key of a peer that never existed, `scope_index` the index of an interface by name
    (for the zone of a link-local endpoint).
    """
    peers = bytearray()
    for step in steps:
        head = get_request(step.ifname)
        if isinstance(step, SetDevice):
            if peers:  # the kernel applies the device's attributes before the peers of the same request
                yield head + attribute(_DEVICE_PEERS | _NESTED, bytes(peers))
                peers = bytearray()
            yield head + _device(step)
            continue
        for piece in _pieces(step, throwaway_key, scope_index):
            if len(peers) + len(piece) > MAX_PEERS_BYTES:
                yield head + attribute(_DEVICE_PEERS | _NESTED, bytes(peers))
                peers = bytearray()
            peers += piece
    if peers:
        yield get_request(steps[-1].ifname) + attribute(_DEVICE_PEERS | _NESTED, bytes(peers))


def _device(step: SetDevice) -> bytes:
    out = b""
    if step.private_key is not None:
        out += attribute(_DEVICE_PRIVATE_KEY, step.private_key.raw)
    if step.listen_port is not None:
        out += attribute(_DEVICE_LISTEN_PORT, struct.pack("=H", step.listen_port))
    if step.fwmark is not None:
        out += attribute(_DEVICE_FWMARK, struct.pack("=I", step.fwmark))
    return out


def _pieces(
    step: RemovePeer | SetPeer | RemoveAllowedIPs,
    throwaway_key: Callable[[], bytes],
    scope_index: Callable[[str], int],
) -> Iterator[bytes]:
    """Encoded peers, each piece short enough for one request."""
    if isinstance(step, RemovePeer):
        yield _removal(step.public_key.raw)
    elif isinstance(step, SetPeer):
        head = attribute(_PEER_PUBLIC_KEY, step.public_key.raw)
        settings = b""
        if step.preshared_key is not None:
            settings += attribute(_PEER_PRESHARED_KEY, step.preshared_key.raw)
        if step.endpoint is not None:
            settings += attribute(_PEER_ENDPOINT, sockaddr(step.endpoint, scope_index))
        if step.persistent_keepalive_s is not None:
            settings += attribute(_PEER_KEEPALIVE, struct.pack("=H", step.persistent_keepalive_s))
        for chunk in _chunks(step.add_allowed_ips) or [b""]:
            allowed = attribute(_PEER_ALLOWED_IPS | _NESTED, chunk) if chunk else b""
            yield attribute(_NESTED, head + settings + allowed)
            settings = b""
    else:
        # Removing a peer takes its allowed-ips away, and in one request nobody sees the peer in between. This works on
        # every kernel; removing a single allowed-ip by a flag needs Linux 6.16.
        for chunk in _chunks(step.allowed_ips):
            key = throwaway_key()
            taker = attribute(_PEER_PUBLIC_KEY, key) + attribute(_PEER_ALLOWED_IPS | _NESTED, chunk)
            yield attribute(_NESTED, taker) + _removal(key)


def _removal(key: bytes) -> bytes:
    return attribute(
        _NESTED, attribute(_PEER_PUBLIC_KEY, key) + attribute(_PEER_FLAGS, struct.pack("=I", _PEER_REMOVE_ME))
    )


def _chunks(allowed_ips: frozenset[IPNetwork]) -> list[bytes]:
    """Encoded allowed-ips, in chunks that leave room in a request for the peer's other attributes."""
    chunks: list[bytes] = []
    chunk = bytearray()
    for network in allowed_ips:
        if len(chunk) + _ALLOWED_IP6.size > MAX_PEERS_BYTES - _PEER_ROOM:
            chunks.append(bytes(chunk))
            chunk.clear()
        chunk += _allowed_ip(network)
    return [*chunks, bytes(chunk)] if chunk else chunks


def _allowed_ip(network: IPNetwork) -> bytes:
    form, family = (_ALLOWED_IP4, _AF_INET) if network.version == 4 else (_ALLOWED_IP6, _AF_INET6)
    packed = network.network_address.packed
    return form.pack(
        form.size, _NESTED, 6, _ALLOWED_IP_FAMILY, family,
        4 + len(packed), _ALLOWED_IP_ADDRESS, packed, 5, _ALLOWED_IP_PREFIXLEN, network.prefixlen,
    )  # fmt: skip


def sockaddr(endpoint: Endpoint, scope_index: Callable[[str], int]) -> bytes:
    """struct sockaddr_in or sockaddr_in6. The scope id is in host byte order, everything else in network byte order."""
    address = endpoint.address
    if address.version == 4:
        return struct.pack("=H", _AF_INET) + struct.pack("!H4s8x", endpoint.port, address.packed)
    scope = scope_index(address.scope_id) if address.scope_id else 0
    return (
        struct.pack("=H", _AF_INET6)
        + struct.pack("!HI16s", endpoint.port, 0, address.packed)
        + struct.pack("=I", scope)
    )


def _endpoint(data: bytes, scope_name: Callable[[int], str]) -> Endpoint:
    (family,) = struct.unpack_from("=H", data)
    (port,) = struct.unpack_from("!H", data, 2)
    address: IPAddress
    if family == _AF_INET:
        address = IPv4Address(data[4:8])
    elif family == _AF_INET6:
        address = IPv6Address(data[8:24])
        (scope,) = struct.unpack_from("=I", data, 24)
        if scope:
            address = IPv6Address(f"{address}%{scope_name(scope)}")
    else:
        raise ValueError(f"an endpoint of address family {family}")
    return Endpoint(address, port)


@dataclass(slots=True)
class _PeerParts:
    """What the messages of a dump have said of one peer so far."""

    endpoint: Endpoint | None = None
    preshared_key: bytes = _NO_KEY
    keepalive_s: int = 0
    latest_handshake: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    allowed_ips: list[IPNetwork] = field(default_factory=list)


def decode(messages: Iterable[bytes], scope_name: Callable[[int], str]) -> DeviceState:
    """The device that the messages of one uninterrupted dump describe. Raises ValueError for what no kernel sends.

    `scope_name` gives the name of an interface by index.
    """
    private_key, listen_port, fwmark = _NO_KEY, 0, 0
    parts: dict[bytes, _PeerParts] = {}
    try:
        for message in messages:
            for kind, data in entries(message):
                if kind == _DEVICE_PEERS:
                    for _, peer in entries(data):
                        _peer(peer, parts, scope_name)
                elif kind == _DEVICE_PRIVATE_KEY:
                    private_key = data
                elif kind == _DEVICE_LISTEN_PORT:
                    (listen_port,) = struct.unpack("=H", data)
                elif kind == _DEVICE_FWMARK:
                    (fwmark,) = struct.unpack("=I", data)
        peers, statuses = _peers(parts)
        return DeviceState(
            private_key=PrivateKey(private_key) if private_key != _NO_KEY else None,
            listen_port=listen_port,
            fwmark=fwmark,
            peers=peers,
            statuses=statuses,
        )
    except (struct.error, KeyError, IndexError) as exc:
        raise ValueError(f"not a WireGuard device message: {type(exc).__name__}") from exc


def _peer(data: bytes, parts: dict[bytes, _PeerParts], scope_name: Callable[[int], str]) -> None:
    found = dict(entries(data))
    peer = parts.setdefault(found[_PEER_PUBLIC_KEY], _PeerParts())
    for kind, value in found.items():
        if kind == _PEER_ALLOWED_IPS:
            peer.allowed_ips += [_network(nested) for _, nested in entries(value)]
        elif kind == _PEER_PRESHARED_KEY:
            peer.preshared_key = value
        elif kind == _PEER_ENDPOINT:
            peer.endpoint = _endpoint(value, scope_name)
        elif kind == _PEER_KEEPALIVE:
            (peer.keepalive_s,) = struct.unpack("=H", value)
        elif kind == _PEER_LAST_HANDSHAKE:
            seconds, nanoseconds = struct.unpack("=qq", value)
            peer.latest_handshake = seconds + nanoseconds / 1e9 if seconds else None
        elif kind == _PEER_RX_BYTES:
            (peer.rx_bytes,) = struct.unpack("=Q", value)
        elif kind == _PEER_TX_BYTES:
            (peer.tx_bytes,) = struct.unpack("=Q", value)


def _network(data: bytes) -> IPNetwork:
    found = dict(entries(data))
    prefixlen = found[_ALLOWED_IP_PREFIXLEN][0]
    packed = found[_ALLOWED_IP_ADDRESS]
    return IPv4Network((packed, prefixlen)) if len(packed) == 4 else IPv6Network((packed, prefixlen))


def _peers(parts: dict[bytes, _PeerParts]) -> tuple[frozenset[Peer], tuple[PeerStatus, ...]]:
    peers, statuses = [], []
    for raw, part in sorted(parts.items()):
        key = PublicKey(raw)
        psk = PresharedKey(part.preshared_key) if part.preshared_key != _NO_KEY else None
        peers.append(Peer(key, frozenset(part.allowed_ips), part.endpoint, psk, part.keepalive_s))
        statuses.append(PeerStatus(key, part.endpoint, part.latest_handshake, part.rx_bytes, part.tx_bytes))
    return frozenset(peers), tuple(statuses)
