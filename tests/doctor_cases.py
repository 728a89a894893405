"""For each alert, what a doctor sees just beyond its limits, and just within. The limits are read out of the alert's expression.

tests/unit/charts/test_doctor.py asks the doctor, tests/contract/test_doctor.py asks Prometheus: both have to say the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from agent.checks import checks_of
from agent.doctor import Check, Looks, Process
from agent.status import Counters, EgressHealth, PathHealth, PeerHealth, PoolHealth, RangeHealth, RoleStatus, Verdict
from lab.helm import CHARTS, SEED, SHOOT

ROLES = {SEED: "seed-server", SHOOT: "shoot-client"}
DAY_S = 86400.0

PEER = PeerHealth("n1", ("10.0.0.2",), path="stream from 192.0.2.9", handshake_age_s=60.0, canary_age_s=0.5)
SERVER = RoleStatus(
    "seed-server", "a", "rz-seed", Verdict.UP, "the shoot is reached through 1 of 1 client", 3600.0,
    paths=(PathHealth("stream", "1 stream", "up"),),
    peers=(PEER,),
    ranges=(RangeHealth("10.40.0.0/16", "pod", "n1"),),
    certificate_expires_in_s=30 * DAY_S,
    certificate_lifetime_s=90 * DAY_S,
    pools=(PoolHealth("10.0.0.0/24", 100, 1),),
    egress=EgressHealth(("[::]:9443",)),
    key_age_s=31 * DAY_S,
)  # fmt: skip
CLIENT = replace(
    SERVER,
    role="shoot-client",
    ifname="rz-shoot",
    ranges=(),
    pools=(),
    egress=None,
    grant_expires_in_s=1800.0,
    token_expires_in_s=3000.0,
    token_lifetime_s=3600.0,
)
PROCESS = Process(open_fds=20, max_fds=1000, age_s=10 * DAY_S)
STATUS = {SEED: SERVER, SHOOT: CLIENT}


def rules(chart: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((CHARTS / chart / "files/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@dataclass(frozen=True, slots=True)
class Limits:
    """`numbers` that the expression compares with, in its order, `per_second` if it asks for a rate; `within_s` of its first range;
    `waits_s` before it fires."""

    numbers: tuple[float, ...]
    per_second: bool
    within_s: float
    waits_s: float


def limits(rule: dict[str, Any]) -> Limits:
    found = re.findall(r"(?<![=!])[<>] ([\d.]+)(?: \* (\d+)\b)?", rule["expr"])
    ranges = re.findall(r"\[(\w+)\]", rule["expr"])
    numbers = tuple(float(a) * float(b or 1) for a, b in found)
    return Limits(
        numbers, "rate(" in rule["expr"], _seconds(ranges[0]) if ranges else 60.0, _seconds(rule.get("for", "0s"))
    )


def _seconds(text: str) -> float:
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1]]


@dataclass(frozen=True, slots=True)
class Case:
    """`fires`: the alert, sooner or later; and the doctor's check fails."""

    chart: str
    id: str
    looks: Looks
    fires: bool

    @property
    def check(self) -> Check:
        return next(check for check in checks_of(ROLES[self.chart]) if check.id == self.id)

    def __str__(self) -> str:
        return f"{self.id}-{'beyond' if self.fires else 'within'}"


Maker = Callable[[RoleStatus, Limits], Iterator[tuple[bool, Looks]]]


def still(status: RoleStatus, process: Process = PROCESS) -> Looks:
    """Nothing changes between the looks."""
    return Looks(status, status, 3.0, process)


def _gauge(beyond: Callable[[Limits], dict[str, Any]], within: Callable[[Limits], dict[str, Any]]) -> Maker:
    def make(status: RoleStatus, limits: Limits) -> Iterator[tuple[bool, Looks]]:
        yield True, still(replace(status, **beyond(limits)))
        yield False, still(replace(status, **within(limits)))

    return make


def _counted(counters: Callable[[int], dict[str, Any]]) -> Maker:
    """As many events as are allowed within the alert's range, and one more."""

    def make(status: RoleStatus, limits: Limits) -> Iterator[tuple[bool, Looks]]:
        (number,) = limits.numbers
        most = number * limits.within_s if limits.per_second else number
        for count in (math.floor(most) + 1, math.floor(most)):
            now, before = (replace(status, **counters(c)) for c in (count, 0))
            yield count > most, Looks(before, now, limits.within_s, PROCESS)

    return make


def _pool(at: int) -> dict[str, Any]:
    return {"pools": (PoolHealth("10.0.0.0/24", 1000, at - 5, 3, 2), PoolHealth("fd00::/64", 1000, 1))}


def _descriptors(status: RoleStatus, limits: Limits) -> Iterator[tuple[bool, Looks]]:
    most = round(limits.numbers[0] * 1000)
    yield True, still(status, replace(PROCESS, open_fds=most + 1))
    yield False, still(status, replace(PROCESS, open_fds=most))


def _egress(status: RoleStatus, limits: Limits) -> Iterator[tuple[bool, Looks]]:
    share, per_s = limits.numbers
    least = round(per_s * limits.within_s)
    for bad, good in ((least + 1, 0), (least, 0), (round(share * 100) + 1, 49), (round(share * 100), 50)):
        dials = (("dial ok", good), ("tunnel down", bad))
        now, before = (replace(status, egress=EgressHealth(("x",), dials=d)) for d in (dials, ()))
        fires = bad + good > least and bad > share * (bad + good)
        yield fires, Looks(before, now, limits.within_s, PROCESS)


def _certificate(status: RoleStatus, limits: Limits) -> Iterator[tuple[bool, Looks]]:
    week, day = limits.numbers
    yield True, still(replace(status, certificate_expires_in_s=week - limits.waits_s - 60))
    yield False, still(replace(status, certificate_expires_in_s=week + 60))
    for age, fires in ((day - 43200, False), (DAY_S + 3600, True)):  # of two days
        lifetime = 2 * DAY_S
        yield fires, still(replace(status, certificate_expires_in_s=lifetime - age, certificate_lifetime_s=lifetime))


_DOWN = _gauge(lambda _: {"verdict": Verdict.DOWN}, lambda _: {"verdict": Verdict.DEGRADED})
_DEGRADED = _gauge(lambda _: {"verdict": Verdict.DEGRADED}, lambda _: {"verdict": Verdict.UP})
_STALE = _gauge(
    lambda limits: {"peers": (PEER, replace(PEER, name="n2", handshake_age_s=limits.numbers[0] + 1))},
    lambda limits: {"peers": (PEER, replace(PEER, name="n2", handshake_age_s=limits.numbers[0]))},
)
_DROPS = _counted(lambda n: {"paths": (PathHealth("stream", "x", "up", drops=(("cap", n), ("codel", 9 * n))),)})
_ENDING = _gauge(
    lambda limits: {"certificate_expires_in_s": limits.numbers[0] - 1},
    lambda limits: {"certificate_expires_in_s": limits.numbers[0]},
)
_REPAIRS = _counted(
    lambda n: {"counters": Counters(repairs=(("AddRoute", n // 2), ("SetFirewall", n - n // 2)))},
)
_POOL = _gauge(
    lambda limits: _pool(round(limits.numbers[0] * 1000) + 1), lambda limits: _pool(round(limits.numbers[0] * 1000))
)

MAKERS: dict[str, Maker] = {
    "RhizomeTunnelDown": _DOWN,
    "RhizomeTunnelDegraded": _DEGRADED,
    "RhizomeCanaryFailing": _gauge(
        lambda _: {"peers": (PEER, replace(PEER, name="n2", canary_age_s=4.1))},
        lambda _: {"peers": (PEER, replace(PEER, name="n2", canary_age_s=3.9))},
    ),
    "RhizomeRangesUncarried": _gauge(
        lambda _: {"ranges": (*SERVER.ranges, RangeHealth("10.50.0.0/16", "service"))}, lambda _: {}
    ),
    "RhizomeHandshakeStale": _STALE,
    "RhizomeFailover": _counted(lambda n: {"counters": Counters(failovers=(("silent", n),))}),
    "RhizomeMovesFlapping": _counted(lambda n: {"counters": Counters(moves=n)}),
    "RhizomePoolFilling": _POOL,
    "RhizomePoolNearlyFull": _POOL,
    "RhizomePrefixesRefused": _counted(lambda n: {"counters": Counters(refused=(("outside", n),))}),
    "RhizomeConnectionsTurnedAway": _counted(lambda n: {"counters": Counters(turned_away=(("tls", n), ("head", 1)))}),
    "RhizomeIdentityInTwoPlaces": _counted(lambda n: {"counters": Counters(conflicts=n)}),
    "RhizomeRelayDrops": _DROPS,
    "RhizomeCertificateExpiring": _certificate,
    "RhizomeCertificateEnding": _ENDING,
    "RhizomeHostContested": _REPAIRS,
    "RhizomeDescriptorsHigh": _descriptors,
    "RhizomeEgressFailing": _egress,
    "RhizomeKeyRotationFailing": _counted(lambda n: {"counters": Counters(rotations=(("failed", n), ("forced", 1)))}),
    "RhizomeNodeTunnelDown": _DOWN,
    "RhizomeNodeTunnelDegraded": _DEGRADED,
    "RhizomeNodeHandshakeStale": _STALE,
    "RhizomeNodeRelayDrops": _DROPS,
    "RhizomeNodeCertificateExpiring": _certificate,
    "RhizomeNodeCertificateEnding": _ENDING,
    "RhizomeNodeTokenEnding": _gauge(
        lambda limits: {"token_expires_in_s": limits.numbers[0] * 3600 - 1},
        lambda limits: {"token_expires_in_s": limits.numbers[0] * 3600},
    ),
    "RhizomeNodeHostContested": _REPAIRS,
    "RhizomeNodeDescriptorsHigh": _descriptors,
    "RhizomeNodeReconnecting": _counted(lambda n: {"counters": Counters(reconnects=n)}),
    "RhizomeNodeGrantExpiring": _gauge(
        lambda limits: {"grant_expires_in_s": limits.numbers[0] - 1},
        lambda limits: {"grant_expires_in_s": limits.numbers[0]},
    ),
}


def cases(chart: str) -> list[Case]:
    """Of every alert of a chart. Raises KeyError for one that has none."""
    return [
        Case(chart, rule["alert"], looks, fires)
        for rule in rules(chart)
        for fires, looks in MAKERS[rule["alert"]](STATUS[chart], limits(rule))
    ]
