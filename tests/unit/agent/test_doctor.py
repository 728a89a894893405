"""What a doctor makes of two looks where an alert would have watched for long. Limits: tests/unit/charts/test_doctor.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.checks import checks_of
from agent.doctor import Finding, Looks, Outcome, Process, examine
from agent.health import FENCED
from agent.status import Counters, EgressHealth, PeerHealth, RangeHealth, RoleStatus, Verdict

SEED = RoleStatus("seed-server", "a", "rz-seed", Verdict.UP, "all is well", 60.0)
CLIENT = replace(SEED, role="shoot-client", ifname="rz-shoot")
OLD = Process(20, 1000, age_s=5 * 86400.0)
YOUNG = Process(20, 1000, age_s=60.0)


def find(id: str, before: RoleStatus, now: RoleStatus, seconds: float = 3.0, process: Process = OLD) -> Finding:
    (found,) = [f for f in examine(checks_of(now.role), Looks(before, now, seconds, process)) if f.id == id]
    return found


def refused(count: int) -> RoleStatus:
    return replace(SEED, counters=Counters(refused=(("outside", count),)))


def turned_away(**counts: int) -> RoleStatus:
    return replace(SEED, counters=Counters(turned_away=tuple(counts.items())))


def test_one_event_of_what_must_not_happen_is_bad() -> None:
    found = find("RhizomePrefixesRefused", refused(4), refused(5))
    assert found.outcome is Outcome.BAD
    assert found.seen == "prefixes refused: outside 1 within 3s, outside 5 since the daemon started 5d ago"


def test_what_a_young_process_has_counted_is_within_the_alerts_time() -> None:
    assert find("RhizomePrefixesRefused", refused(1), refused(1), process=YOUNG).outcome is Outcome.BAD


@pytest.mark.parametrize("process", [OLD, Process()])
def test_what_an_old_process_has_counted_may_be_long_ago(process: Process) -> None:
    found = find("RhizomePrefixesRefused", refused(1), refused(1), process=process)
    assert found.outcome is Outcome.WARN and "none within 3s, outside 1 since the daemon started" in found.seen


def test_a_few_events_in_a_short_look_are_too_little_to_be_sure() -> None:
    found = find("RhizomeConnectionsTurnedAway", turned_away(tls=7), turned_away(tls=9))
    assert found.outcome is Outcome.WARN
    assert "tls 2 within 3s (allowed: 30 within 5m)" in found.seen


def test_many_events_in_a_short_look_are_bad_and_only_what_is_too_many_is_named() -> None:
    found = find("RhizomeConnectionsTurnedAway", turned_away(tls=7, head=1), turned_away(tls=17, head=1))
    assert found.outcome is Outcome.BAD and "tls 10" in found.seen and "head" not in found.seen


def test_an_even_rate_within_the_limit_is_well_in_a_look_of_any_length() -> None:
    """One in eleven seconds is less than 0.1 a second, also where a look catches one more than its share."""
    for seconds in range(1, 400):
        caught = seconds // 11 + 1
        found = find(
            "RhizomeConnectionsTurnedAway", turned_away(tls=1000), turned_away(tls=1000 + caught), float(seconds)
        )
        assert found.outcome is not Outcome.BAD, f"{caught} in {seconds} s"


def test_many_events_since_the_start_are_a_hint_when_none_is_seen() -> None:
    many = replace(CLIENT, counters=Counters(reconnects=5000))
    assert find("RhizomeNodeReconnecting", many, many).outcome is Outcome.WARN
    few = replace(CLIENT, counters=Counters(reconnects=9))
    assert find("RhizomeNodeReconnecting", few, few, process=YOUNG).outcome is Outcome.OK


def test_counters_of_a_process_that_was_started_in_between_begin_anew() -> None:
    found = find("RhizomePrefixesRefused", refused(900), refused(2), process=YOUNG)
    assert "outside 2 within 3s" in found.seen


def test_what_is_only_information_is_never_bad() -> None:
    now = replace(SEED, counters=Counters(failovers=(("silent", 3),)))
    found = find("RhizomeFailover", SEED, now)
    assert found.outcome is Outcome.WARN and "silent 3 within 3s" in found.seen


def test_an_identity_that_is_kept_out_is_named_as_long_as_it_is() -> None:
    fenced = replace(SEED, causes=("x", f"{FENCED}: spiffe://a/shoot-client/n1"))
    found = find("RhizomeIdentityInTwoPlaces", fenced, fenced)
    assert found.outcome is Outcome.BAD and "spiffe://a/shoot-client/n1" in found.seen


def test_a_failed_rotation_says_which_key_is_in_use() -> None:
    now = replace(SEED, counters=Counters(rotations=(("failed", 1), ("forced", 2))), key_age_s=31 * 86400.0)
    found = find("RhizomeKeyRotationFailing", SEED, now)
    assert found.outcome is Outcome.BAD
    assert (
        "failed 1 within 3s" in found.seen and "forced" not in found.seen and "the key in use is 31d old" in found.seen
    )


def test_a_few_dials_that_fail_are_told_with_the_last_one() -> None:
    egress = EgressHealth(("x",), dials=(("dial ok", 1), ("tunnel down", 2)), last_failure="10.0.0.1:80: tunnel down")
    found = find("RhizomeEgressFailing", replace(SEED, egress=EgressHealth(("x",))), replace(SEED, egress=egress))
    assert found.outcome is Outcome.WARN
    assert "2 of 3 dials failed within 3s: tunnel down 2; the last one: 10.0.0.1:80" in found.seen


def test_an_egress_proxy_that_was_started_in_between_begins_anew() -> None:
    before = replace(SEED, egress=EgressHealth(("x",), dials=(("dial ok", 500),)))
    now = replace(SEED, egress=EgressHealth(("x",), dials=(("dial ok", 1), ("tunnel down", 20))))
    assert "20 of 21" in find("RhizomeEgressFailing", before, now).seen


def test_a_verdict_says_how_long_it_stands_and_every_cause() -> None:
    down = replace(SEED, verdict=Verdict.DOWN, sentence="no client", since_s=12.0, causes=("no client", "and more"))
    assert find("RhizomeTunnelDown", down, down).seen == "DOWN for 12s: no client (also: and more)"


def test_who_is_silent_is_named_with_the_last_answer() -> None:
    peers = tuple(PeerHealth(f"n{i}", path="no stream", canary_age_s=90.0 if i else None) for i in range(9))
    found = find("RhizomeCanaryFailing", SEED, replace(SEED, peers=peers))
    assert found.seen.startswith(
        "9 of 9 without an answer: n0 (last answer: never, no stream), n1 (last answer 1m30s ago"
    )
    assert found.seen.endswith("and 4 more")


def test_what_is_carried_by_nobody_is_named() -> None:
    ranges = (RangeHealth("10.0.0.0/16", "node", "n1"), RangeHealth("10.1.0.0/16", "pod"))
    found = find("RhizomeRangesUncarried", SEED, replace(SEED, ranges=ranges))
    assert found.seen == "1 of 2 declared ranges are carried by no client: 10.1.0.0/16 (pod)"


def test_a_certificate_whose_age_is_not_known_is_no_alarm() -> None:
    now = replace(CLIENT, certificate_expires_in_s=3 * 86400.0)
    assert find("RhizomeNodeCertificateExpiring", now, now).outcome is Outcome.WARN


def test_a_daemon_without_metrics_is_told() -> None:
    assert find("RhizomeDescriptorsHigh", SEED, SEED, process=Process()).outcome is Outcome.WARN


def test_what_has_ended_is_said_so() -> None:
    now = replace(CLIENT, grant_expires_in_s=-5.0)
    found = find("RhizomeNodeGrantExpiring", now, now)
    assert found.outcome is Outcome.BAD and found.seen == "the grant has ended"
