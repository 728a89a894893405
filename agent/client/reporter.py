"""Puts together, on demand, what a client says about itself."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from agent.certificate import expires_in_s, lifetime_s
from agent.client import report
from agent.client.client import Client
from agent.daemon import software
from agent.health import Since
from agent.identity import Role
from agent.status import Counters, RoleStatus, Verdict
from agent.wireguard.choose import Choice


class Reporter:
    """One per process: it remembers since when the verdict stands."""

    def __init__(
        self,
        client: Client,
        role: Role,
        control_plane: str,
        choice: Choice,
        certificate: Path | None,
        token: Path | None,
    ) -> None:
        self._client = client
        self._role = role
        self._control_plane = control_plane
        self._choice = choice
        self._certificate = certificate
        self._token = token
        self._since = Since(Verdict.DOWN, time.monotonic())

    def status(self) -> RoleStatus:
        client, session, live = self._client, self._client.session, self._client.live
        now, wall, crossing = time.monotonic(), time.time(), client.crossing
        error = live.last_pass.error if live.last_pass else None
        seen = report.Seen(
            stream_up=session.stream is not None,
            up=client.leg.up,
            dial_failed=client.leg.dial_failed,
            grant=session.grant,
            refusal=session.refusal,
            canary_age_s=client.responder.age_s(now),
            status=client.leg.status,
            stats=client.leg.stats,
            host_error=str(error) if error else "",
            dropped=client.passage.trouble(client.plane.ifname),
            route_refused=live.refused,
            mtu_bytes=client.mtu_bytes,
            wall=wall,
            direct=self._direct(now),
            unrenewed_s=session.unrenewed_s(now),
            unkept=client.keeper.trouble if client.keeper is not None else "",
        )
        judgement = report.judge(seen)
        self._since = self._since.update(judgement.verdict, now)
        return RoleStatus(
            role=self._role.value,
            control_plane=self._control_plane,
            ifname=client.plane.ifname,
            verdict=judgement.verdict,
            sentence=judgement.sentence,
            since_s=now - self._since.at,
            causes=judgement.causes,
            version=software(),
            epoch=session.grant.epoch if session.grant else "",
            backend=self._choice.kind.value,
            backend_reason=self._choice.reason,
            paths=report.paths(seen),
            peers=(report.server(seen),),
            counters=Counters(
                refused=tuple(sorted(Counter(refusal.reason.value for refusal in live.refused).items())),
                repairs=tuple(sorted(live.steps.items())),
                reconnects=client.leg.reconnects,
                rotations=tuple(sorted(crossing.rotations.items())) if crossing is not None else (),
                path_moves=client.direct.ladder.moves if client.direct is not None else 0,
            ),
            certificate_expires_in_s=_left_s(self._certificate, wall),
            certificate_lifetime_s=lifetime_s(self._certificate) if self._certificate is not None else None,
            token_expires_in_s=_left_s(self._token, wall),
            token_lifetime_s=lifetime_s(self._token) if self._token is not None else None,
            grant_expires_in_s=session.expires_in_s(now),
            key_age_s=max(0.0, wall - client.plane.born),
            key_device=client.plane.ifname,
            rotation=crossing.words if crossing is not None else "",
        )

    def _direct(self, now: float) -> report.SeenDirect | None:
        direct, grant = self._client.direct, self._client.session.grant
        if direct is None:
            return None
        return report.SeenDirect(
            in_use=direct.in_use,
            offered=grant is not None and grant.direct is not None,
            canary_age_s=direct.responder.age_s(now),
            status=direct.status,
            held_s=direct.ladder.held_until - now,
        )


def _left_s(file: Path | None, wall: float) -> float | None:
    return expires_in_s(file, wall) if file is not None else None
