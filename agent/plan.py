"""The pure middle of the engine: what has to change so that the host becomes what is desired.

`plan(desired, observed)` compares only what `desired` manages and returns steps in an order that is safe at every point:
the firewall stands before a link is up; peers leave before others take their prefixes; new addresses come before routes
that use them, and old addresses go after the routes that used them; nothing is ever replaced where adding will do.
From any state, applying the whole plan reaches `desired`; an interrupted plan is simply planned again.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.errors import ConfigError
from agent.host import (
    AddAddress,
    AddRoute,
    AddRule,
    CreateDevice,
    DelAddress,
    DeleteDevice,
    DelRoute,
    DelRule,
    RemoveAllowedIPs,
    RemovePeer,
    SetDevice,
    SetFirewall,
    SetLink,
    SetPeer,
    SetSysctl,
    Step,
)
from agent.model import (
    IFALIAS_PREFIX,
    IFNAME_MAX,
    MTU_MAX_BYTES,
    MTU_MIN_BYTES,
    Device,
    IPNetwork,
    Observed,
    Peer,
    PresharedKey,
    PublicKey,
    Route,
    Tunnel,
)

_NO_PSK = PresharedKey(bytes(32))


def plan(desired: Tunnel, observed: Observed) -> tuple[Step, ...]:
    """Steps from `observed` to `desired`, in order; empty when nothing differs. Raises ConfigError if `desired` contradicts itself."""
    check(desired)
    return tuple(_steps(desired, observed))


def check(desired: Tunnel) -> None:
    """Raises ConfigError for a desired state that no host could hold, naming every problem."""
    problems = [problem for device in desired.devices for problem in _device_problems(device)]
    names = [device.ifname for device in desired.devices]
    problems += [f"{name}: two devices with this name" for name in {n for n in names if names.count(n) > 1}]
    known = {device.ifname: {i.ip for i in device.addresses} for device in desired.devices}
    for route in sorted(desired.routes, key=_route_order):
        if route.ifname not in known:
            problems.append(f"route {route.dst}: there is no device {route.ifname}")
        elif route.source is not None and route.source not in known[route.ifname]:
            problems.append(f"route {route.dst}: source {route.source} is not an address of {route.ifname}")
    keys = [(route.dst, route.metric) for route in desired.routes]
    if len(set(keys)) != len(keys):
        problems.append("two routes have the same destination and metric")
    if problems:
        raise ConfigError(*problems)


def _device_problems(device: Device) -> Iterator[str]:
    name = device.ifname
    if not 0 < len(name) <= IFNAME_MAX or any(c in "/% \t\n" for c in name):
        yield f"{name!r}: an interface name has 1 to {IFNAME_MAX} characters, without slash, percent sign or space"
    if not MTU_MIN_BYTES <= device.mtu_bytes <= MTU_MAX_BYTES:
        yield f"{name}: mtu {device.mtu_bytes} is not in {MTU_MIN_BYTES}..{MTU_MAX_BYTES}"
    if not device.up:
        yield f"{name}: a desired device is up"
    if not device.alias.startswith(IFALIAS_PREFIX):
        yield f"{name}: alias {device.alias!r} does not start with {IFALIAS_PREFIX!r}"
    for interface in device.addresses:
        if interface.network.prefixlen != interface.ip.max_prefixlen:
            # A shared subnet would make the kernel delete secondary addresses together with their primary one.
            yield f"{name}: address {interface} must be a host address (/{interface.ip.max_prefixlen})"
    if len(_claimed(device)) < sum(len(peer.allowed_ips) for peer in device.peers):
        yield from _double_claims(device)
    peer_keys = [peer.public_key for peer in device.peers]
    if len(set(peer_keys)) != len(peer_keys):
        yield f"{name}: two peers with one public key"


def _double_claims(device: Device) -> Iterator[str]:
    owners: dict[IPNetwork, PublicKey] = {}
    for peer in device.peers:
        for network in peer.allowed_ips:
            if network in owners:
                yield f"{device.ifname}: {network} is claimed by two peers, {owners[network]} and {peer.public_key}"
            owners[network] = peer.public_key


def _claimed(device: Device) -> frozenset[IPNetwork]:
    """All prefixes of all peers. A union takes the hashes that its sets know already: with thousands of peers that counts."""
    return frozenset[IPNetwork]().union(*(peer.allowed_ips for peer in device.peers))


def _steps(desired: Tunnel, observed: Observed) -> Iterator[Step]:
    have = {device.ifname: device for device in observed.tunnel.devices}
    if desired.firewall is not None and desired.firewall != observed.tunnel.firewall:
        yield SetFirewall(desired.firewall)  # default deny stands before any link is up
    sysctls = [SetSysctl(key, value) for key, value in sorted(desired.sysctls - observed.tunnel.sysctls)]
    names = {device.ifname.replace(".", "/") for device in desired.devices}
    yield from (step for step in sysctls if names.isdisjoint(step.key.split(".")))
    for device in desired.devices:
        yield from _device_steps(device, have.get(device.ifname))
    yield from (step for step in sysctls if not names.isdisjoint(step.key.split(".")))  # a device's own come with it
    families: set[int] = {route.dst.version for route in desired.routes}
    for family in sorted(families - observed.rules):
        yield AddRule(family)
    wanted = {device.ifname for device in desired.devices}
    stale = [
        (device, address)
        for device in desired.devices
        if (present := have.get(device.ifname))
        for address in sorted(present.addresses - device.addresses, key=str)
        if not address.ip.is_link_local  # the kernel's own fe80::/64
    ]
    # A link's last IPv4 address takes all IPv4 routes of the link along: then it has to go before they come.
    last = [(d, a) for d, a in stale if a.version == 4 and not any(other.version == 4 for other in d.addresses)]
    yield from (DelAddress(device.ifname, address) for device, address in last)
    yield from _route_steps(desired.routes, _kept(observed.tunnel.routes, {device.ifname for device, _ in last}))
    yield from (DelAddress(device.ifname, address) for device, address in stale if (device, address) not in last)
    for ifname in sorted(have.keys() - wanted):
        yield DeleteDevice(ifname)
    for family in sorted(observed.rules - families):
        yield DelRule(family)
    if desired.firewall is None and observed.tunnel.firewall is not None:
        yield SetFirewall(None)  # only now: its devices are gone


def _device_steps(want: Device, have: Device | None) -> Iterator[Step]:
    if have is None:
        yield CreateDevice(want.ifname, want.mtu_bytes, want.alias)
        have = Device(want.ifname, private_key=None, mtu_bytes=want.mtu_bytes, up=False, alias=want.alias)
    private_key = want.private_key if want.private_key != have.private_key else None
    listen_port = want.listen_port if want.listen_port != have.listen_port else None
    fwmark = want.fwmark if want.fwmark != have.fwmark else None
    if private_key is not None or listen_port is not None or fwmark is not None:
        yield SetDevice(want.ifname, private_key, listen_port, fwmark)
    yield from _peer_steps(want, have)
    mtu_bytes = want.mtu_bytes if want.mtu_bytes != have.mtu_bytes else None
    alias = want.alias if want.alias != have.alias else None
    if mtu_bytes is not None or alias is not None:
        yield SetLink(want.ifname, mtu_bytes=mtu_bytes, alias=alias)
    for address in sorted(want.addresses - have.addresses, key=str):
        yield AddAddress(want.ifname, address)
    if not have.up:
        yield SetLink(want.ifname, up=True)


def _peer_steps(want: Device, have: Device) -> Iterator[Step]:
    present = {peer.public_key: peer for peer in have.peers}
    wanted = {peer.public_key: peer for peer in want.peers}
    for key in sorted(present.keys() - wanted.keys()):
        yield RemovePeer(want.ifname, key)
    claimed = _claimed(want)
    different = sorted(key for key, peer in wanted.items() if _differs(peer, present.get(key)))
    for key in different:
        # A prefix that another peer claims is not removed here: setting it there moves it, without a gap.
        if key in present and (stale := present[key].allowed_ips - claimed):
            yield RemoveAllowedIPs(want.ifname, key, stale)
    for key in different:
        if step := _set_peer(want.ifname, wanted[key], present.get(key)):
            yield step


def _differs(want: Peer, have: Peer | None) -> bool:
    return (
        have is None
        or want.allowed_ips != have.allowed_ips
        or want.endpoint not in (None, have.endpoint)
        or want.preshared_key != have.preshared_key
        or want.persistent_keepalive_s != have.persistent_keepalive_s
    )


def _set_peer(ifname: str, want: Peer, have: Peer | None) -> SetPeer | None:
    new = have is None
    have = have or Peer(want.public_key)
    add = want.allowed_ips - have.allowed_ips
    endpoint = want.endpoint if want.endpoint != have.endpoint else None
    psk = (want.preshared_key or _NO_PSK) if want.preshared_key != have.preshared_key else None
    keepalive = want.persistent_keepalive_s if want.persistent_keepalive_s != have.persistent_keepalive_s else None
    if not (new or add or endpoint or psk or keepalive is not None):
        return None
    return SetPeer(ifname, want.public_key, add, endpoint, psk, keepalive)


def _route_steps(want: frozenset[Route], have: frozenset[Route]) -> Iterator[Step]:
    """Make before break: what is more specific comes before what is around it, and what is not wanted goes last, so that no packet
    takes a way meanwhile that is neither the old nor the new one."""
    for route in sorted(want - have, key=lambda route: (-route.dst.prefixlen, _route_order(route))):
        yield AddRoute(route)
    keys = {(route.dst, route.metric) for route in want}
    for route in sorted(have - want, key=_route_order):
        if (route.dst, route.metric) not in keys:  # else the AddRoute has replaced it atomically
            yield DelRoute(route)


def _kept(routes: frozenset[Route], without_ipv4: set[str]) -> frozenset[Route]:
    return frozenset(route for route in routes if route.dst.version == 6 or route.ifname not in without_ipv4)


def _route_order(route: Route) -> tuple[int, int, int, int]:
    return (route.dst.version, int(route.dst.network_address), route.dst.prefixlen, route.metric)
