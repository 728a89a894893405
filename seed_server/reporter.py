"""Puts together, on demand, what a seed server says about itself."""

from __future__ import annotations

import time
from pathlib import Path

from agent.certificate import expires_in_s, lifetime_s
from agent.daemon import software
from agent.health import Since
from agent.identity import Role
from agent.status import Counters, Counts, PathHealth, RoleStatus, Verdict
from agent.wireguard.choose import Choice
from seed_server import report
from seed_server.addresses import Addresses
from seed_server.egress_link import EgressLink
from seed_server.server import SeedServer
from seed_server.succession import Succession


class Reporter:
    """One per process: it remembers since when the verdict stands."""

    def __init__(
        self,
        server: SeedServer,
        succession: Succession,
        choice: Choice,
        certificate: Path,
        known: Addresses,
        egress: EgressLink | None = None,
    ) -> None:
        self._server = server
        self._succession = succession
        self._choice = choice
        self._certificate = certificate
        self._addresses = known
        self._egress = egress
        self._rows = report.Rows()
        self._since = Since(Verdict.DOWN, time.monotonic())

    def status(self) -> RoleStatus:
        server, live, now, wall = self._server, self._server.live, time.monotonic(), time.time()
        error = live.last_pass.error if live.last_pass else None
        seen = report.Seen(
            canaries=server.stream.canaries(list(server.registry.clients.values())),
            pulses=server.roster.carrying.pulses,
            statuses=[status for some in server.stream.statuses.values() for status in some],
            streams={number: up for number, (_, up) in live.streams.items()},
            stats=live.stats,
            host_error=str(error) if error else "",
            turned_away=live.last_turned_away,
            fenced=server.warden.fence.fenced(now),
            wall=wall,
            now=now,
            direct_canaries=server.direct.prober.targets if server.direct is not None else {},
            direct_statuses=server.direct.statuses if server.direct is not None else (),
        )
        rows = self._rows.of(server.charter, server.registry, server.carries)
        peers, ranges = report.peers(rows, seen), report.ranges(server.charter, rows)
        judgement = report.judge(peers, ranges, seen)
        self._since = self._since.update(judgement.verdict, now)
        return RoleStatus(
            role=Role.SEED_SERVER.value,
            control_plane=server.charter.policy.control_plane,
            ifname=server.stream.names.ifname,
            verdict=judgement.verdict,
            sentence=judgement.sentence,
            since_s=now - self._since.at,
            causes=judgement.causes,
            version=software(),
            epoch=server.stream.current.incarnation.epoch,
            backend=self._choice.kind.value,
            backend_reason=self._choice.reason,
            paths=self._paths(seen),
            peers=peers,
            ranges=ranges,
            counters=Counters(
                _counts(live.refused),
                _counts(live.turned_away),
                _counts(live.steps),
                failovers=_counts(server.roster.carrying.tally.failovers),
                moves=server.roster.carrying.tally.moves,
                conflicts=server.warden.fence.contested,
                rotations=_counts(self._succession.rotations),
                not_let_in=_counts(live.not_let_in),
            ),
            certificate_expires_in_s=expires_in_s(self._certificate, wall),
            certificate_lifetime_s=lifetime_s(self._certificate),
            pools=self._addresses.pools(),
            egress=self._egress.health() if self._egress is not None else None,
            key_age_s=self._succession.age_s(wall),
            key_device=server.stream.current.ifname,
            rotation=self._succession.words(now),
        )

    def _paths(self, seen: report.Seen) -> tuple[PathHealth, ...]:
        server, mtu_bytes = self._server, self._server.charter.mtu_bytes
        direct = () if server.direct is None else (report.direct_path(seen, mtu_bytes, server.direct.port),)
        return (report.path(seen, mtu_bytes), *direct)


def _counts(counter: dict[str, int]) -> Counts:
    return tuple(sorted(counter.items()))
