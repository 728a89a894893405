"""What a client says about itself. Pure: everything that is known comes in, one verdict and its rows go out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.carrier.api import DialFailed, Stats, Up
from agent.guard import Refusal
from agent.health import ClientView, Judgement, canary_is_fresh, duration, judge_client
from agent.identity import Role
from agent.messages import DIRECT, Grant, Refuse
from agent.model import PeerStatus
from agent.status import PathHealth, PeerHealth


@dataclass(frozen=True, slots=True)
class SeenDirect:
    """What was observed of the direct path."""

    in_use: bool
    offered: bool
    canary_age_s: float | None
    status: PeerStatus | None
    held_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What was observed. `stream_up`: there is a stream now; `up` is the newest one, also after it ended. `wall` is the time
    of day for WireGuard's handshake time, all ages are ready-made."""

    stream_up: bool
    up: Up | None
    dial_failed: DialFailed | None
    grant: Grant | None
    refusal: Refuse | None
    canary_age_s: float | None
    status: PeerStatus | None
    stats: Stats | None
    host_error: str
    dropped: str
    route_refused: tuple[Refusal, ...]
    mtu_bytes: int
    wall: float
    direct: SeenDirect | None = None
    unrenewed_s: float | None = None
    unkept: str = ""

    @property
    def handshake_age_s(self) -> float | None:
        return _handshake_age_s(self.status, self.wall)


def _handshake_age_s(status: PeerStatus | None, wall: float) -> float | None:
    handshake = status.latest_handshake if status else None
    return max(0.0, wall - handshake) if handshake is not None else None


def judge(seen: Seen) -> Judgement:
    failed = seen.dial_failed
    return judge_client(
        ClientView(
            stream_up=seen.stream_up,
            granted=seen.grant is not None,
            unrenewed_s=seen.unrenewed_s,
            canary_age_s=_canary_age_s(seen),
            handshake_age_s=seen.handshake_age_s,
            stream=f"{failed.stage}: {failed.detail}" if failed else "",
            refusal=f"{seen.refusal.reason}: {seen.refusal.text}" if seen.refusal else "",
            host=seen.host_error or "; ".join(map(str, seen.route_refused)),
            beyond=seen.dropped or seen.unkept,
        )
    )


def _canary_age_s(seen: Seen) -> float | None:
    """Of the path in use."""
    return seen.direct.canary_age_s if seen.direct is not None and seen.direct.in_use else seen.canary_age_s


def paths(seen: Seen) -> tuple[PathHealth, ...]:
    direct = seen.direct
    if direct is None:
        return (path(seen),)
    up = canary_is_fresh(direct.canary_age_s)
    endpoint = direct.status.endpoint if direct.status else None
    held = f"held down for {duration(direct.held_s)}" if direct.held_s > 0 and not direct.in_use else ""
    row = PathHealth(
        transport=DIRECT,
        via=f"UDP to {endpoint}" if endpoint else "UDP",
        state="up" if up else "down",
        detail=held if up else "" if direct.offered else "the server offers none",
        handshake_age_s=_handshake_age_s(direct.status, seen.wall),
        mtu_bytes=seen.mtu_bytes,
        rx_bytes=direct.status.rx_bytes if direct.status else 0,
        tx_bytes=direct.status.tx_bytes if direct.status else 0,
        in_use=direct.in_use,
        canary_age_s=direct.canary_age_s,
    )
    return replace(path(seen), in_use=not direct.in_use, canary_age_s=seen.canary_age_s), row


def path(seen: Seen) -> PathHealth:
    failed = seen.dial_failed
    detail = f"{failed.stage}: {failed.detail}" if failed and not seen.stream_up else ""
    stats = seen.stats
    return PathHealth(
        transport="stream",
        via=seen.up.via if seen.up else "",
        state="up" if seen.stream_up else "dialling",
        detail=detail,
        rtt_s=stats.rtt_s if stats else None,
        handshake_age_s=seen.handshake_age_s,
        mtu_bytes=seen.mtu_bytes,
        rx_bytes=stats.rx_bytes if stats else 0,
        tx_bytes=stats.tx_bytes if stats else 0,
        drops=stats.drops if stats else (),
    )


def server(seen: Seen) -> PeerHealth:
    """The one peer of a client."""
    grant, refused = seen.grant, {refusal.network for refusal in seen.route_refused}
    return PeerHealth(
        name="seed-server",
        role=Role.SEED_SERVER.value,
        addresses=tuple(map(str, grant.servers)) if grant else (),
        prefixes=tuple(map(str, grant.carries)) if grant else (),
        reaches=tuple(str(n) for n in grant.routes if n not in refused) if grant else (),
        path=seen.up.via if seen.up else "",
        handshake_age_s=seen.handshake_age_s,
        canary_age_s=_canary_age_s(seen),
        rx_bytes=seen.status.rx_bytes if seen.status else 0,
        tx_bytes=seen.status.tx_bytes if seen.status else 0,
        refused=(*(text for _, text in grant.refused), *map(str, seen.route_refused)) if grant else (),
    )
