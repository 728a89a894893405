"""What a seed server says about itself. Pure: everything that is known comes in, one RoleStatus goes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


class Rows:
    """What of a client's row stays the same: put into words once for as long as neither the client nor what it carries changes.
    With thousands of clients that is most of the work, and a seed server that is asked how it does has other things to do."""

    def __init__(self) -> None:
        self._made: dict[str, _Words] = {}

    def of(self, charter: Charter, registry: Registry, carries: Carries) -> list[tuple[str, Client, _Words]]:
        """Of each client, by name."""
        before, self._made = self._made, {}
        rows = []
        for key, client in sorted(registry.clients.items()):
            carried, words = carries.get(key, ()), before.get(key)
            if words is None or words.client is not client or words.carried is not carried:
                words = _words(charter, client, carried)
            self._made[key] = words
            rows.append((key, client, words))
        return rows


@dataclass(frozen=True, slots=True)
class _Words:
    """`covers` are the declared ranges of which it carries a part."""

    client: Client
    carried: tuple[IPNetwork, ...]
    addresses: tuple[str, ...]
    prefixes: tuple[str, ...]
    refused: tuple[str, ...]
    reaches: tuple[str, ...]
    covers: frozenset[IPNetwork]


def _words(charter: Charter, client: Client, carried: tuple[IPNetwork, ...]) -> _Words:
    networks = _collapsed(carried)
    return _Words(
        client,
        carried,
        addresses=tuple(map(str, client.addresses)),
        prefixes=tuple(map(str, networks)),
        refused=tuple(r.text for r in client.refused),
        reaches=tuple(map(str, client.routes)),
        covers=frozenset(
            declared
            for declared in charter.ranges
            if any(n.version == declared.version and n.overlaps(declared) for n in networks)
        ),
    )


def peers(rows: Iterable[tuple[str, Client, _Words]], seen: Seen) -> tuple[PeerHealth, ...]:
    """One row per client, by name."""
    status = {s.public_key: s for s in (*seen.statuses, *seen.direct_statuses)}
    found = []
    for key, client, words in rows:
        is_direct = client.path == DIRECT and client.direct_key is not None
        wg = status.get(client.direct_key if is_direct and client.direct_key else client.public_key)
        canaries = seen.direct_canaries if is_direct else seen.canaries
        canary = canaries.get(words.addresses[0]) if words.addresses else None
        handshake = wg.latest_handshake if wg else None
        pulse = seen.pulses.get(key)
        found.append(
            PeerHealth(
                name=client.identity.name,
                addresses=words.addresses,
                prefixes=words.prefixes,
                path=_path(client, seen.streams, is_direct),
                handshake_age_s=max(0.0, seen.wall - handshake) if handshake is not None else None,
                canary_age_s=canary.age_s(seen.now) if canary else None,
                rtt_s=canary.rtt_s if canary else None,
                rx_bytes=wg.rx_bytes if wg else 0,
                tx_bytes=wg.tx_bytes if wg else 0,
                refused=words.refused,
                role=client.identity.role.value,
                reaches=words.reaches,
                standing=pulse.standing.name.lower() if pulse else "",
                reason=_reason(pulse, seen.now) if pulse else "",
            )
        )
    return tuple(found)


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


def ranges(charter: Charter, rows: Sequence[tuple[str, Client, _Words]]) -> tuple[RangeHealth, ...]:
    """One row per declared range, with those who carry it or a part of it."""
    found = []
    policy = charter.policy
    for kind, declared in (("node", policy.nodes), ("pod", policy.pods), ("service", policy.services)):
        for network in declared:
            carriers = [client.identity.name for _, client, words in rows if network in words.covers]
            shown = ", ".join(carriers[:3]) + (f" and {len(carriers) - 3} more" if len(carriers) > 3 else "")
            found.append(RangeHealth(str(network), kind, shown))
    return tuple(found)


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
