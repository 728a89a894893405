"""The vocabulary of the engine: what a tunnel should be, and what the host says it is.

Frozen values in the words of WireGuard and iproute2. Nothing here does I/O, resolves a name or reads a clock.
A field that is None is *not managed*: whatever the host has there is right.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

#: rtnetlink protocol number on every route and rule of ours (unassigned in linux/rtnetlink.h and /etc/iproute2/rt_protos).
ROUTE_PROTOCOL = 84
#: Our own routing table: we can never replace another program's route in place.
ROUTE_TABLE = 7117
#: Priority of the rule `not from fwmark 0x52/0xff lookup 7117`.
RULE_PRIORITY = 5000
#: On every socket of the tunnel itself (the carrier's TCP, WireGuard's UDP): such packets never look into ROUTE_TABLE,
#: so the tunnel's own packets cannot be routed into the tunnel.
FWMARK = 0x52
FWMARK_MASK = 0xFF
#: On sockets that may send by the tunnel's devices only; our firewall rejects what would leave by another one. Not bound to a device:
#: there are two while keys are replaced, and connections outlive that.
TUNNEL_MARK = 0x53
#: Start of the ifalias of every device of ours; what follows is the device's epoch.
IFALIAS_PREFIX = "rhizome "

MTU_MIN_BYTES = 1280  # below it the kernel deletes the IPv6 addresses of a device (RFC 8200 section 5)
MTU_MAX_BYTES = 9000
IFNAME_MAX = 15  # IFNAMSIZ - 1


def _decode_key(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ValueError("a WireGuard key is 44 characters of base64") from exc
    if len(text) != 44:
        raise ValueError("a WireGuard key is 44 characters of base64")
    return raw


@dataclass(frozen=True, slots=True, order=True)
class PublicKey:
    """A Curve25519 public key, 32 bytes. Raises ValueError for any other length."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise ValueError("a WireGuard key has 32 bytes")

    @classmethod
    def from_base64(cls, text: str) -> PublicKey:
        return cls(_decode_key(text))

    def __str__(self) -> str:
        return base64.b64encode(self.raw).decode()

    def __repr__(self) -> str:
        return f"<{str(self)[:8]}>"


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A Curve25519 private key, 32 bytes, stored clamped as the kernel stores it (RFC 7748 section 5).

    Shows itself only through `raw` and `reveal()`; str, repr and format say `(hidden)`.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise ValueError("a WireGuard key has 32 bytes")
        clamped = bytes([self.raw[0] & 248]) + self.raw[1:31] + bytes([(self.raw[31] & 127) | 64])
        object.__setattr__(self, "raw", clamped)

    def reveal(self) -> str:
        """Base64, for the one place that hands it to WireGuard."""
        return base64.b64encode(self.raw).decode()

    def __repr__(self) -> str:
        return "(hidden)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class PresharedKey:
    """A symmetric key mixed into the handshake, 32 bytes (WireGuard whitepaper section 5.2). Hidden like a private key."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise ValueError("a WireGuard key has 32 bytes")

    @classmethod
    def from_base64(cls, text: str) -> PresharedKey:
        return cls(_decode_key(text))

    def reveal(self) -> str:
        return base64.b64encode(self.raw).decode()

    def __repr__(self) -> str:
        return "(hidden)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer's UDP packets go: an IP address (never a name) and a port."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Peer:
    """One WireGuard peer. `endpoint=None`: not managed, it roams. Keepalive in seconds, 0 is off.
    `preshared_key=None` means no preshared key (WireGuard stores zeros)."""

    public_key: PublicKey
    allowed_ips: frozenset[IPNetwork] = frozenset()
    endpoint: Endpoint | None = None
    preshared_key: PresharedKey | None = None
    persistent_keepalive_s: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """One WireGuard device, as desired or as observed.

    `listen_port=None`: not managed. `alias` is the ifalias and starts with IFALIAS_PREFIX for a device of ours;
    it carries the epoch, which names this incarnation of the device (a new device has no sessions).
    """

    ifname: str
    private_key: PrivateKey | None
    listen_port: int | None = None
    fwmark: int = 0
    mtu_bytes: int = 1420
    up: bool = True
    alias: str = IFALIAS_PREFIX
    addresses: frozenset[IPInterface] = frozenset()
    peers: frozenset[Peer] = frozenset()


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """One unicast route through a device of ours, always in ROUTE_TABLE with ROUTE_PROTOCOL.

    `source` is the preferred source address (iproute2's `src`); None lets the kernel choose.
    """

    dst: IPNetwork
    ifname: str
    source: IPAddress | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Tunnel:
    """All that a role wants from its host, and all that `plan` compares.

    `firewall` is the whole text of our one nft table, None for no table. `sysctls` maps dotted keys to values.
    The policy rule for ROUTE_TABLE exists, for both address families, exactly when there is a device.
    """

    devices: tuple[Device, ...] = ()
    routes: frozenset[Route] = frozenset()
    firewall: str | None = None
    sysctls: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What WireGuard says of a peer: counters in bytes, `latest_handshake` in seconds since the epoch, None for never."""

    public_key: PublicKey
    endpoint: Endpoint | None
    latest_handshake: float | None
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device as WireGuard shows it: the keys and peers, no addresses (those are the NetStack's)."""

    private_key: PrivateKey | None
    listen_port: int
    fwmark: int
    peers: frozenset[Peer]
    statuses: tuple[PeerStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkState:
    """A device as rtnetlink shows it. `alias` is empty for a device that nobody named."""

    mtu_bytes: int
    up: bool
    alias: str
    addresses: frozenset[IPInterface]


@dataclass(frozen=True, slots=True)
class NetState:
    """The host's network as far as it is ours: the named links, our routes, rules, sysctls, and our nft table.

    `rules` holds the address families (4, 6) that have our rule. `firewall` is the text that was applied, as long as
    the kernel's table still is what came of it; "" when the table is there but differs; None when there is none.
    """

    links: tuple[tuple[str, LinkState], ...] = ()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[int] = frozenset()
    firewall: str | None = None
    sysctls: frozenset[tuple[str, str]] = frozenset()

    def link(self, ifname: str) -> LinkState | None:
        return next((state for name, state in self.links if name == ifname), None)


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the host: the comparable part as a Tunnel, the rest as statuses per device."""

    tunnel: Tunnel
    statuses: tuple[tuple[str, tuple[PeerStatus, ...]], ...] = ()
    rules: frozenset[int] = frozenset()


def networks(texts: Iterable[str]) -> tuple[IPNetwork, ...]:
    """Canonical networks from text; raises ValueError for host bits, zone ids and non-networks."""
    out: list[IPNetwork] = []
    for text in texts:
        if "%" in text:
            raise ValueError(f"{text!r}: a network has no zone id")
        out.append(IPv6Network(text) if ":" in text else IPv4Network(text))
    return tuple(out)
