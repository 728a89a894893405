"""What a seed server says about itself. Pure: everything that is known comes in, one RoleStatus goes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from agent.canary import Target
from agent.carrier.api import Stats, Up
from agent.health import Judgement, canary_is_fresh, duration, judge_server
from agent.identity import Role
from agent.messages import DIRECT
from agent.model import IPNetwork, PeerStatus
from agent.pulse import Pulse, Standing
from agent.status import PathHealth, PeerHealth, RangeHealth
from seed_server.charter import Charter
from seed_server.desired import Carries
from seed_server.registry import Client, Registry


@dataclass(frozen=True, slots=True)
class Seen:
    """What was observed: canaries by tunnel address, pulses by identity text, WireGuard's counters by public key, streams by
    number; of the direct device too. `wall` is the time of day for WireGuard's handshake times, `now` the monotonic time for
    all others."""

    canaries: Mapping[str, Target]
    pulses: Mapping[str, Pulse]
    statuses: Iterable[PeerStatus]
    streams: Mapping[int, Up]
    stats: Stats | None
    host_error: str
    turned_away: str
    wall: float
    now: float
    direct_canaries: Mapping[str, Target] = field(default_factory=dict)
    direct_statuses: Iterable[PeerStatus] = ()
    fenced: tuple[str, ...] = ()


def peers(registry: Registry, carries: Carries, seen: Seen) -> tuple[PeerHealth, ...]:
    """One row per client, by name."""
    status = {s.public_key: s for s in (*seen.statuses, *seen.direct_statuses)}
    rows = []
    for key, client in sorted(registry.clients.items()):
        is_direct = client.path == DIRECT and client.direct_key is not None
        wg = status.get(client.direct_key if is_direct and client.direct_key else client.public_key)
        canaries = seen.direct_canaries if is_direct else seen.canaries
        canary = canaries.get(str(client.addresses[0])) if client.addresses else None
        handshake = wg.latest_handshake if wg else None
        pulse = seen.pulses.get(key)
        rows.append(
            PeerHealth(
                name=client.identity.name,
                addresses=tuple(map(str, client.addresses)),
                prefixes=tuple(map(str, _collapsed(carries.get(key, ())))),
                path=_path(client, seen.streams, is_direct),
                handshake_age_s=max(0.0, seen.wall - handshake) if handshake is not None else None,
                canary_age_s=canary.age_s(seen.now) if canary else None,
                rtt_s=canary.rtt_s if canary else None,
                rx_bytes=wg.rx_bytes if wg else 0,
                tx_bytes=wg.tx_bytes if wg else 0,
                refused=tuple(r.text for r in client.refused),
                role=client.identity.role.value,
                reaches=tuple(map(str, client.routes)),
                standing=pulse.standing.name.lower() if pulse else "",
                reason=_reason(pulse, seen.now) if pulse else "",
            )
        )
    return tuple(rows)


def _collapsed(prefixes: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    """Neighbouring parts of a range as one."""
    prefixes = tuple(prefixes)
    v4 = collapse_addresses(p for p in prefixes if isinstance(p, IPv4Network))
    return (*v4, *collapse_addresses(p for p in prefixes if isinstance(p, IPv6Network)))


def _reason(pulse: Pulse, now: float) -> str:
    since = duration(now - pulse.since)
    if pulse.standing is Standing.LOST:
        return f"{pulse.cause.words}, for {since}"
    if pulse.standing is Standing.UNPROVEN:
        return f"back, held for {duration(pulse.since + pulse.hold_s - now)}" if pulse.cause.words else "no answer yet"
    return ""


def _path(client: Client, streams: Mapping[int, Up], is_direct: bool) -> str:
    if is_direct:
        return "direct UDP" if client.once is None else "direct UDP, without a daemon"
    up = streams.get(client.stream) if client.stream is not None else None
    return f"stream from {up.peer}" if up else "no stream"


def ranges(charter: Charter, registry: Registry, carries: Carries) -> tuple[RangeHealth, ...]:
    """One row per declared range, with those who carry it or a part of it."""
    rows = []
    policy = charter.policy
    for kind, declared in (("node", policy.nodes), ("pod", policy.pods), ("service", policy.services)):
        for network in declared:
            carriers = [
                client.identity.name
                for key, client in sorted(registry.clients.items())
                if any(p.version == network.version and p.overlaps(network) for p in carries.get(key, ()))
            ]
            shown = ", ".join(carriers[:3]) + (f" and {len(carriers) - 3} more" if len(carriers) > 3 else "")
            rows.append(RangeHealth(str(network), kind, shown))
    return tuple(rows)


def path(seen: Seen, mtu_bytes: int) -> PathHealth:
    """All streams together: the server has one listener and as many paths as clients."""
    stats = seen.stats
    count = len(seen.streams)
    return PathHealth(
        transport="stream",
        via=f"{count} stream{'' if count == 1 else 's'}",
        state="up" if count else "down",
        rtt_s=stats.rtt_s if stats else None,
        mtu_bytes=mtu_bytes,
        rx_bytes=stats.rx_bytes if stats else 0,
        tx_bytes=stats.tx_bytes if stats else 0,
        drops=stats.drops if stats else (),
    )


def direct_path(seen: Seen, mtu_bytes: int, port: int) -> PathHealth:
    """All sidecars that are reached by UDP together."""
    crossing = sum(canary_is_fresh(target.age_s(seen.now)) for target in seen.direct_canaries.values())
    statuses = tuple(seen.direct_statuses)
    return PathHealth(
        transport=DIRECT,
        via=f"UDP port {port}",
        state="up" if crossing else "down",
        detail=f"{crossing} of {len(seen.direct_canaries)} answer",
        mtu_bytes=mtu_bytes,
        rx_bytes=sum(status.rx_bytes for status in statuses),
        tx_bytes=sum(status.tx_bytes for status in statuses),
    )


def judge(rows: tuple[PeerHealth, ...], carried: tuple[RangeHealth, ...], seen: Seen) -> Judgement:
    # Sidecars come and go with the pods that they are in: whether the shoot can be reached is not theirs to say.
    clients = tuple(row for row in rows if row.role == Role.SHOOT_CLIENT.value)
    return judge_server(clients, carried, host=seen.host_error, turned_away=seen.turned_away, fenced=seen.fenced)
