"""What a shoot client says about itself. Pure: everything that is known comes in, one verdict and its rows go out."""

from __future__ import annotations

from dataclasses import dataclass

from agent.carrier.api import DialFailed, Stats, Up
from agent.health import ClientView, Judgement, judge_client
from agent.messages import Grant, Refuse
from agent.model import IPNetwork, PeerStatus
from agent.status import PathHealth, PeerHealth


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
    route_refused: tuple[tuple[IPNetwork, str], ...]
    mtu_bytes: int
    wall: float

    @property
    def handshake_age_s(self) -> float | None:
        handshake = self.status.latest_handshake if self.status else None
        return max(0.0, self.wall - handshake) if handshake is not None else None


def judge(seen: Seen) -> Judgement:
    failed = seen.dial_failed
    return judge_client(
        ClientView(
            stream_up=seen.stream_up,
            granted=seen.grant is not None,
            canary_age_s=seen.canary_age_s,
            handshake_age_s=seen.handshake_age_s,
            stream=f"{failed.stage}: {failed.detail}" if failed else "",
            refusal=f"{seen.refusal.reason}: {seen.refusal.text}" if seen.refusal else "",
            host=seen.host_error or "; ".join(text for _, text in seen.route_refused),
        )
    )


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
    grant = seen.grant
    return PeerHealth(
        name="seed-server",
        addresses=tuple(map(str, grant.servers)) if grant else (),
        prefixes=tuple(map(str, grant.carries)) if grant else (),
        path=seen.up.via if seen.up else "",
        handshake_age_s=seen.handshake_age_s,
        canary_age_s=seen.canary_age_s,
        rx_bytes=seen.status.rx_bytes if seen.status else 0,
        tx_bytes=seen.status.tx_bytes if seen.status else 0,
        refused=tuple(text for _, text in grant.refused) if grant else (),
    )
