"""The two ports to the operating system, and the steps that cross them.

A step is one change, a frozen value whose `str()` reads like the `ip`, `wg`, `nft` or `sysctl` command that would do it.
An implementation applies a batch of steps in order; it may merge neighbours into fewer kernel messages, and it stops at
the first failure with HostError. Nothing is transactional: after an error the engine looks at the world again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.model import (
    FWMARK,
    FWMARK_MASK,
    ROUTE_PROTOCOL,
    ROUTE_TABLE,
    RULE_PRIORITY,
    DeviceState,
    Endpoint,
    IPInterface,
    IPNetwork,
    NetState,
    PresharedKey,
    PrivateKey,
    PublicKey,
    Route,
)


@dataclass(frozen=True, slots=True)
class CreateDevice:
    """Make the WireGuard device. It exists, tagged with `alias`, down, without key and peers, afterwards."""

    ifname: str
    mtu_bytes: int
    alias: str

    def __str__(self) -> str:
        return f"ip link add {self.ifname} mtu {self.mtu_bytes} type wireguard # {self.alias}"


@dataclass(frozen=True, slots=True)
class DeleteDevice:
    ifname: str

    def __str__(self) -> str:
        return f"ip link del {self.ifname}"


@dataclass(frozen=True, slots=True)
class SetDevice:
    """None: leave as it is. wireguard-go reopens its socket on every listen_port, so only changes are sent."""

    ifname: str
    private_key: PrivateKey | None = None
    listen_port: int | None = None
    fwmark: int | None = None

    def __str__(self) -> str:
        words = [f"wg set {self.ifname}"]
        words += [f"listen-port {self.listen_port}"] if self.listen_port is not None else []
        words += [f"fwmark {self.fwmark:#x}"] if self.fwmark is not None else []
        words += ["private-key (hidden)"] if self.private_key is not None else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class RemovePeer:
    ifname: str
    public_key: PublicKey

    def __str__(self) -> str:
        return f"wg set {self.ifname} peer {self.public_key} remove"


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Create or change a peer. `add_allowed_ips` are added to it (and so taken from any other peer); nothing is
    replaced, because replacing drops packets. None: leave as it is. A preshared key of 32 zero bytes clears it."""

    ifname: str
    public_key: PublicKey
    add_allowed_ips: frozenset[IPNetwork] = frozenset()
    endpoint: Endpoint | None = None
    preshared_key: PresharedKey | None = None
    persistent_keepalive_s: int | None = None

    def __str__(self) -> str:
        words = [f"wg set {self.ifname} peer {self.public_key}"]
        words += ["preshared-key (hidden)"] if self.preshared_key is not None else []
        words += [f"endpoint {self.endpoint}"] if self.endpoint is not None else []
        words += (
            [f"persistent-keepalive {self.persistent_keepalive_s}"] if self.persistent_keepalive_s is not None else []
        )
        if self.add_allowed_ips:
            listed = sorted(self.add_allowed_ips, key=lambda n: (n.version, n))
            words.append("allowed-ips " + ",".join(f"+{n}" for n in listed[:8]) + (",..." if len(listed) > 8 else ""))
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class RemoveAllowedIPs:
    """Take prefixes from a peer without touching its others (a throw-away peer takes them and is removed, in one message)."""

    ifname: str
    public_key: PublicKey
    allowed_ips: frozenset[IPNetwork]

    def __str__(self) -> str:
        listed = ",".join(f"-{n}" for n in sorted(self.allowed_ips, key=lambda n: (n.version, n))[:8])
        return f"wg set {self.ifname} peer {self.public_key} allowed-ips {listed}"


@dataclass(frozen=True, slots=True)
class AddAddress:
    ifname: str
    address: IPInterface

    def __str__(self) -> str:
        return f"ip address add {self.address} dev {self.ifname}"


@dataclass(frozen=True, slots=True)
class DelAddress:
    ifname: str
    address: IPInterface

    def __str__(self) -> str:
        return f"ip address del {self.address} dev {self.ifname}"


@dataclass(frozen=True, slots=True)
class SetLink:
    """None: leave as it is."""

    ifname: str
    mtu_bytes: int | None = None
    up: bool | None = None
    alias: str | None = None

    def __str__(self) -> str:
        words = [f"ip link set {self.ifname}"]
        words += [f"mtu {self.mtu_bytes}"] if self.mtu_bytes is not None else []
        words += ["up" if self.up else "down"] if self.up is not None else []
        words += [f"alias '{self.alias}'"] if self.alias is not None else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class AddRule:
    """The policy rule of one address family: everything but the tunnel's own packets looks into ROUTE_TABLE."""

    family: int  # 4 or 6

    def __str__(self) -> str:
        return f"ip -{self.family} rule add {_RULE}"


@dataclass(frozen=True, slots=True)
class DelRule:
    family: int

    def __str__(self) -> str:
        return f"ip -{self.family} rule del {_RULE}"


_RULE = f"not from all fwmark {FWMARK:#x}/{FWMARK_MASK:#x} lookup {ROUTE_TABLE} pref {RULE_PRIORITY} protocol {ROUTE_PROTOCOL}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Atomic replace of the route with the same destination and metric in our table."""

    route: Route

    def __str__(self) -> str:
        return f"ip route replace {_route(self.route)}"


@dataclass(frozen=True, slots=True)
class DelRoute:
    route: Route

    def __str__(self) -> str:
        return f"ip route del {_route(self.route)}"


def _route(route: Route) -> str:
    source = f" src {route.source}" if route.source else ""
    metric = f" metric {route.metric}" if route.metric else ""
    return f"{route.dst} dev {route.ifname}{source}{metric} table {ROUTE_TABLE} proto {ROUTE_PROTOCOL}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """`key` is dotted as sysctl(8) shows it; a dot inside an interface name is written as a slash."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"sysctl -w {self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class SetFirewall:
    """Replace our one nft table with this text, atomically; None deletes the table."""

    text: str | None

    def __str__(self) -> str:
        return "nft delete table inet rhizome" if self.text is None else "nft -f rhizome.nft"


WireGuardStep = SetDevice | RemovePeer | SetPeer | RemoveAllowedIPs
NetStep = AddAddress | DelAddress | SetLink | AddRule | DelRule | AddRoute | DelRoute | SetSysctl | SetFirewall
Step = CreateDevice | DeleteDevice | WireGuardStep | NetStep


class WireGuard(Protocol):
    """WireGuard devices of the network namespace this process is in."""

    async def create(self, step: CreateDevice) -> None:
        """Raises Unsupported when this backend cannot work here, HostError otherwise. An existing device: HostError(EEXIST)."""

    async def read(self, ifname: str) -> DeviceState | None:
        """All of the device, complete and not torn; None when there is no such device or it is not WireGuard."""

    async def apply(self, steps: Sequence[WireGuardStep]) -> None:
        """Apply in order; all steps are of one device. Raises HostError (ENODEV when the device is gone)."""

    async def delete(self, ifname: str) -> None:
        """Remove the device and what belongs to it. No error when it is gone already."""


class NetStack(Protocol):
    """Links, addresses, rules, routes, sysctls and the nft table of the network namespace this process is in."""

    async def read(
        self, ifnames: Sequence[str] | None, sysctls: Sequence[str] = (), firewall: str | None = None
    ) -> NetState:
        """What is ours. `ifnames=None`: every link whose alias starts with IFALIAS_PREFIX.

        `firewall` is the text that is wanted: a new process, which did not apply it, recognises by it the table that its
        predecessor made of the same text. Without that hint, and for a table of any other text, the answer is "".
        """

    async def apply(self, steps: Sequence[NetStep]) -> None:
        """Apply in order. "Exists already" on add and "gone already" on delete are success. Raises HostError."""

    def changes(self) -> AsyncIterator[None]:
        """Yields, debounced, whenever something of ours may have been changed by somebody else: a hint to look again."""

    def firewall_counters(self) -> dict[str, int]:
        """Packets by the names of `agent.firewall.COUNTERS`, since the table was last applied; empty without a table.
        Raises HostError."""
