"""Renders our one nft table from a frozen value. Default deny: what the value does not name does not come out of the tunnel.

The table `inet rhizome` only ever looks at packets of the tunnel's devices and at packets for WireGuard's own UDP port; it
accepts nothing that another table of the host drops. Its parts, in the order in which a packet meets them:

- `prerouting`, before connection tracking: a packet out of the tunnel must come from one of `sources`.
- `input` and `forward`, through `from_tunnel`: established connections pass, and the ICMP errors that belong to them
  (RFC 792, RFC 4443; needed for path MTU discovery), but no other "related" traffic: a connection tracking helper would
  let the far side open ports here. New connections pass only from `initiators` to `destinations`.
- `transit`: on a hub, what one peer of the tunnel may open through this host to another. It is looked at before "established",
  so that a right that was taken away ends its connections too; and nothing that did not come out of the tunnel is
  forwarded into it.
- `output`: on a hub, what carries TUNNEL_MARK leaves by the tunnel or not at all.
- `clamp`: TCP SYNs in both directions promise no more than the tunnel's MTU carries (RFC 4459 section 3.2).
- `arrived` and `departed`, after everybody else's chains: what was let in and is not counted here was dropped by another firewall.
  That holds because `input` and `forward` come before the chains of others: of two with one priority the younger would be first.
- `postrouting`: where `masquerade` says so, hosts behind us need no route back.

There is not one set in it, on purpose. Replacing a table exchanges the rules of a chain at one moment, but the elements of
a set at another: for some microseconds a packet meets the new rules and finds the sets still empty. A test that replaces
the table under traffic loses packets with sets, and loses none with a rule per prefix. `{ "wg0", "wg1" }` is a set too, and
a device that is not found in it would be a hole.

Text is written for nft 1.0.6 and later, in the layout of `nft list`. Equal values give equal text. Nothing in a value can
add syntax: names are checked, addresses are printed from their integers, everything else is a constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses

from agent.errors import ConfigError
from agent.model import FWMARK_MASK, MTU_MAX_BYTES, MTU_MIN_BYTES, TUNNEL_MARK, IPAddress, IPNetwork

TABLE = "rhizome"
#: Named counters of the table, and what a packet on each of them was.
COUNTERS = {
    "spoofed": "came out of the tunnel with a source that is not the far side's",
    "opened": "opened a connection out of the tunnel, as it may",
    "passed": "opened a connection, and no other firewall of this host dropped it",
    "denied": "tried to open a connection out of the tunnel, and was dropped",
    "not_local": "came for WireGuard's port from where nobody of ours is",
    "not_tunnel": "was to be forwarded into the tunnel, and had not come out of it",
    "unreachable": "went to what nobody of the tunnel can reach just now, and was refused",
}

_COMMENT = "Made by Rhizome. Changes by hand are undone within seconds."
_ICMP_ERRORS = ("destination-unreachable", "time-exceeded", "parameter-problem")
_ICMPV6_ERRORS = ("destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem")

# Narrower than the kernel's rule: these need no quoting, and none is a wildcard to nft.
_IFNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Transit:
    """On a hub: who of the tunnel may open connections to what else of the tunnel."""

    initiators: frozenset[IPNetwork]
    destinations: frozenset[IPNetwork]


#: The first and the last of them.
AddressRange = tuple[IPAddress, IPAddress]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """On a hub: destinations of `transits` that no packet gets to, in order and without overlaps. New connections to both are
    refused; those to `abandoned` that exist are ended, too."""

    suspended: tuple[AddressRange, ...] = ()
    abandoned: tuple[AddressRange, ...] = ()


ALL_REACHABLE = Unreachable()


@dataclass(frozen=True, slots=True)
class Door:
    """A UDP port to which only `sources`, and this host itself, may send."""

    port: int
    sources: frozenset[IPNetwork]


@dataclass(frozen=True, slots=True)
class Firewall:
    """What may cross between the tunnel and this host. An empty set is "none"; there is no "any" except a written /0.

    `devices`: names of the tunnel's devices. `sources`: who may send out of the tunnel at all, replies included.
    `initiators` may open connections out of the tunnel to `destinations`, on this host or behind it; a destination is
    where the packet was sent before anybody's DNAT, so granting a service range is enough to reach its pods.
    `masquerade`: destinations (again before DNAT) that see this host's address instead of the initiator's; those of
    `unmasked`, which may be parts of them, do not.
    `local_ports`: UDP ports that only this host may send to, as WireGuard's is when all packets come by way of the relay.
    `doors`: UDP ports for others than this host. `mtu_bytes`: the smallest MTU of `devices`. `hubs`: the devices that lead to the destinations of `transits`, none where
    nothing is forwarded from the tunnel into the tunnel. `unreachable`: what of those destinations is refused for now.
    """

    devices: frozenset[str]
    sources: frozenset[IPNetwork]
    initiators: frozenset[IPNetwork] = frozenset()
    destinations: frozenset[IPNetwork] = frozenset()
    masquerade: frozenset[IPNetwork] = frozenset()
    unmasked: frozenset[IPNetwork] = frozenset()
    local_ports: frozenset[int] = frozenset()
    mtu_bytes: int = 1420
    doors: frozenset[Door] = frozenset()
    hubs: frozenset[str] = frozenset()
    transits: frozenset[Transit] = frozenset()
    unreachable: Unreachable = ALL_REACHABLE


def render(firewall: Firewall) -> str:
    """The table's whole text, without what it takes to replace an older one. Raises ConfigError naming every problem."""
    if problems := list(_problems(firewall)):
        raise ConfigError(*problems)
    blocks = [
        *([f"counter {name} {{", "}"] for name in sorted(COUNTERS)),
        *_spoofing(firewall),
        *_access(firewall),
        *_transit(firewall),
        *_kept_in(firewall),
        *_clamp(firewall),
        *_masquerade(firewall),
        *_passage(firewall),
    ]
    body = "\n\n".join("\n".join(f"\t{line}" for line in block) for block in blocks)
    return f'table inet {TABLE} {{\n\tcomment "{_COMMENT}"\n{body}\n}}\n'


def _problems(firewall: Firewall) -> Iterator[str]:
    for hub in sorted(firewall.hubs - firewall.devices):
        yield f"firewall: the hub {hub!r} is none of the devices"
    if firewall.transits and not firewall.hubs:
        yield "firewall: transits without a hub lead nowhere"
    if not firewall.devices:
        yield "firewall: no device is named, so nothing would be filtered"
    for name in sorted(firewall.devices):
        if not _IFNAME.fullmatch(name):
            yield f"firewall: {name!r} is not an interface name of 1 to 15 letters, digits, '.', '_' and '-'"
    for port in sorted(firewall.local_ports | {door.port for door in firewall.doors}):
        if not 0 < port < 65536:
            yield f"firewall: {port} is not a UDP port"
    if not MTU_MIN_BYTES <= firewall.mtu_bytes <= MTU_MAX_BYTES:
        yield f"firewall: mtu {firewall.mtu_bytes} is not in {MTU_MIN_BYTES}..{MTU_MAX_BYTES}"


def _spoofing(firewall: Firewall) -> Iterator[list[str]]:
    yield _chain(
        "prerouting",
        "type filter hook prerouting priority raw; policy accept;",
        *(f"{incoming} jump sources" for incoming in _incoming(firewall)),
    )
    yield _chain(
        "sources",
        *(f"{family} saddr {prefix} return" for family, prefix in _prefixes(firewall.sources)),
        'counter name "spoofed" drop',
    )


def _access(firewall: Firewall) -> Iterator[list[str]]:
    jumps = [f"{incoming} jump from_tunnel" for incoming in _incoming(firewall)]
    ports = [f'iifname != "lo" udp dport {port} counter name "not_local" drop' for port in sorted(firewall.local_ports)]
    doors = sorted(firewall.doors, key=lambda door: door.port)
    ports += [f"udp dport {door.port} jump door_{door.port}" for door in doors]
    yield _chain("input", "type filter hook input priority filter - 5; policy accept;", *ports, *jumps)
    for door in doors:
        yield _chain(
            f"door_{door.port}",
            'iifname "lo" return',
            *(f"{family} saddr {prefix} return" for family, prefix in _prefixes(door.sources)),
            'counter name "not_local" drop',
        )
    crossing = [f"{incoming} jump transit" for incoming in _incoming(firewall)] if firewall.hubs else []
    into = [f'oifname "{name}" jump into_tunnel' for name in sorted(firewall.devices)] if firewall.hubs else []
    yield _chain("forward", "type filter hook forward priority filter - 5; policy accept;", *into, *crossing, *jumps)
    yield _chain(
        "from_tunnel",
        "ct state established accept",
        *(f"ct state related icmp type {kind} accept" for kind in _ICMP_ERRORS),
        *(f"ct state related icmpv6 type {kind} accept" for kind in _ICMPV6_ERRORS),
        *(f"{family} saddr {prefix} jump destinations" for family, prefix in _prefixes(firewall.initiators)),
        'counter name "denied" drop',
    )
    yield _chain(
        "destinations",
        *(
            f'ct original {family} daddr {prefix} counter name "opened" accept'
            for family, prefix in _prefixes(firewall.destinations)
        ),
    )


def _transit(firewall: Firewall) -> Iterator[list[str]]:
    if not firewall.hubs:
        return
    yield _chain(
        "into_tunnel",
        *(f"{incoming} return" for incoming in _incoming(firewall)),
        'counter name "not_tunnel" drop',
    )
    elsewhere = " ".join(f'oifname != "{name}"' for name in sorted(firewall.hubs))
    transits = sorted(firewall.transits, key=lambda t: sorted(map(str, t.initiators)))
    yield _chain(
        "transit",
        *(
            f"{family} saddr {prefix} ct direction original goto transit_{number}"
            for number, transit in enumerate(transits)
            for family, prefix in _prefixes(transit.initiators)
        ),
    )
    for number, transit in enumerate(transits):
        yield _chain(
            f"transit_{number}",
            f'{elsewhere} counter name "denied" drop',
            *(f"ct original {family} daddr {p} goto transit_passes" for family, p in _prefixes(transit.destinations)),
            'counter name "denied" drop',
        )
    yield _chain(
        "transit_passes",
        *(f"{where} goto refuse" for where in _within(firewall.unreachable.abandoned)),
        *(f"{where} goto refuse_new" for where in _within(firewall.unreachable.suspended)),
        "ct state established accept",
        'counter name "opened" accept',
    )
    # Of ICMP only a few messages a second reach one host (icmp(7): icmp_ratelimit), and the kernel's own redirects between two
    # peers of one device use them up. A reset has no limit. To a UDP socket only an unreachable port is an error.
    refused = 'counter name "unreachable" reject'
    yield _chain(
        "refuse_new",
        "ct state established accept",
        "tcp flags != syn / fin,syn,rst,ack accept",  # a connection that exists, and that this host has not seen before
        "goto refuse",
    )
    yield _chain(
        "refuse",
        f"meta l4proto tcp {refused} with tcp reset",
        f"meta l4proto udp {refused}",
        f"{refused} with icmpx host-unreachable",
    )


def _kept_in(firewall: Firewall) -> Iterator[list[str]]:
    if not firewall.hubs:
        return
    elsewhere = " ".join(f'oifname != "{name}"' for name in sorted(firewall.hubs))
    yield _chain(
        "output",
        "type filter hook output priority filter - 5; policy accept;",
        f"meta mark & {FWMARK_MASK:#010x} == {TUNNEL_MARK:#010x} {elsewhere} reject with icmpx no-route",
    )


def _clamp(firewall: Firewall) -> Iterator[list[str]]:
    # `rt mtu` knows only the way out; the fixed sizes cover the other direction. The kernel never raises an MSS.
    syn = "tcp flags syn / syn,rst tcp option maxseg size set"
    rules = []
    for name in sorted(firewall.devices):
        rules += [
            f'oifname "{name}" {syn} rt mtu',
            f'iifname "{name}" meta nfproto ipv4 {syn} {firewall.mtu_bytes - 40}',
            f'iifname "{name}" meta nfproto ipv6 {syn} {firewall.mtu_bytes - 60}',
        ]
    yield _chain("clamp", "type filter hook forward priority mangle; policy accept;", *rules)


def _masquerade(firewall: Firewall) -> Iterator[list[str]]:
    if not firewall.masquerade:
        return
    yield _chain(
        "postrouting",
        "type nat hook postrouting priority srcnat; policy accept;",
        *(f'oifname "{name}" return' for name in sorted(firewall.devices)),
        *(f"{incoming} jump hide_initiator" for incoming in _incoming(firewall)),
    )
    # Random ports: two connections that start at once do not lose a packet over the same free port.
    yield _chain(
        "hide_initiator",
        *(f"ct original {family} daddr {prefix} return" for family, prefix in _prefixes(firewall.unmasked)),
        *(
            f"ct original {family} daddr {prefix} masquerade fully-random"
            for family, prefix in _prefixes(firewall.masquerade)
        ),
    )


def _passage(firewall: Firewall) -> Iterator[list[str]]:
    if not firewall.destinations:
        return
    rules = [f'{incoming} ct state new counter name "passed"' for incoming in _incoming(firewall)]
    yield _chain("arrived", "type filter hook input priority 300; policy accept;", *rules)
    yield _chain("departed", "type filter hook postrouting priority 300; policy accept;", *rules)


def _chain(name: str, *lines: str) -> list[str]:
    return [f"chain {name} {{", *(f"\t{line}" for line in lines), "}"]


def _incoming(firewall: Firewall) -> list[str]:
    return [f'iifname "{name}"' for name in sorted(firewall.devices)]


def _prefixes(networks: Iterable[IPNetwork]) -> Iterator[tuple[str, str]]:
    """nft's family word and the prefix, sorted, without those that lie in another.

    Printed from integers: an IPv6 network may carry a zone id, which is free text.
    """
    networks = list(networks)
    for v4 in collapse_addresses(n for n in networks if isinstance(n, IPv4Network)):
        yield "ip", _shown(IPv4Address(int(v4.network_address)), v4.prefixlen)
    for v6 in collapse_addresses(n for n in networks if isinstance(n, IPv6Network)):
        yield "ip6", _shown(IPv6Address(int(v6.network_address)), v6.prefixlen)


def _within(ranges: Iterable[AddressRange]) -> Iterator[str]:
    """nft's words for destinations in each of these."""
    for first, last in ranges:
        family = "ip" if first.version == 4 else "ip6"
        yield f"{family} daddr {first}" + (f"-{last}" if last != first else "")


def _shown(address: IPAddress, prefixlen: int) -> str:
    return str(address) if prefixlen == address.max_prefixlen else f"{address}/{prefixlen}"
