"""Verdicts: up only when packets cross, and the first broken link is the one cause that is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import health
from agent.health import ClientView, Since, duration, judge_client, judge_server
from agent.status import PeerHealth, RangeHealth, Verdict

GOOD = ClientView(stream_up=True, granted=True, canary_age_s=0.4, handshake_age_s=30.0)
OLD = health.CANARY_FRESH_S
AGES = st.none() | st.floats(0, 1e6)
VIEWS = st.builds(
    ClientView,
    st.booleans(),
    st.booleans(),
    AGES,
    AGES,
    st.just(""),
    st.sampled_from(["", "no"]),
    st.sampled_from(["", "EPERM"]),
)
PEERS = st.lists(
    st.builds(PeerHealth, name=st.sampled_from("abc"), canary_age_s=AGES, handshake_age_s=AGES), max_size=4
)
RANGES = st.lists(st.builds(RangeHealth, st.just("10.0.0.0/8"), st.just("pod"), st.sampled_from(["", "a"])), max_size=3)


def test_wireguards_timers_are_those_of_the_whitepaper() -> None:
    assert (health.REKEY_AFTER_TIME_S, health.REJECT_AFTER_TIME_S, health.REKEY_ATTEMPT_TIME_S) == (120, 180, 90)
    assert (health.REKEY_TIMEOUT_S, health.KEEPALIVE_TIMEOUT_S) == (5, 10)


def test_a_client_is_up_when_canaries_come_through() -> None:
    judgement = judge_client(GOOD)
    assert judgement.verdict is Verdict.UP and judgement.causes == ()


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (replace(GOOD, host="no /dev/net/tun"), "this host cannot be set up: no /dev/net/tun"),
        (replace(GOOD, stream_up=False, stream="proxy: 407"), "there is no stream to the server (proxy: 407)"),
        (replace(GOOD, stream_up=False), "there is no stream to the server (dialling)"),
        (replace(GOOD, refusal="role: not here"), "the server refused us: role: not here"),
        (replace(GOOD, granted=False), "the server has not granted us anything yet"),
    ],
)
def test_a_broken_link_while_packets_still_cross(view: ClientView, words: str) -> None:
    fresh, stale = judge_client(view), judge_client(replace(view, canary_age_s=OLD))
    assert (fresh.verdict, stale.verdict) == (Verdict.DEGRADED, Verdict.DOWN)
    assert fresh.causes == stale.causes == (words,)
    assert words in fresh.sentence and words in stale.sentence


def test_what_stops_packets_behind_the_tunnel_is_told_while_the_tunnel_is_up() -> None:
    view = replace(GOOD, beyond="another firewall drops it")
    judgement = judge_client(view)
    assert judgement.verdict is Verdict.DEGRADED and judgement.causes == ("another firewall drops it",)
    assert judge_client(replace(view, stream_up=False)).causes != judgement.causes


def test_a_handshake_is_not_enough_to_be_up() -> None:
    judgement = judge_client(replace(GOOD, canary_age_s=12.0))
    assert judgement.verdict is Verdict.DOWN
    assert judgement.causes == (
        "WireGuard has a session, but no canary comes through (last 12s ago): "
        "look for a firewall, a route or an MTU in the way",
    )


@pytest.mark.parametrize(("age", "words"), [(None, "last: never"), (180.0, "last 3m00s ago")])
def test_no_handshake_is_told_before_no_canary(age: float | None, words: str) -> None:
    (cause,) = judge_client(replace(GOOD, canary_age_s=None, handshake_age_s=age)).causes
    assert cause == f"the stream is up, but WireGuard does not shake hands ({words})"


def test_only_the_root_cause_is_told() -> None:
    everything = ClientView(False, False, None, None, stream="dns: no such name", refusal="old", host="")
    assert judge_client(everything).causes == ("there is no stream to the server (dns: no such name)",)


@settings(deadline=None)
@given(VIEWS)
def test_ready_means_a_fresh_canary_and_up_has_no_cause(view: ClientView) -> None:
    judgement = judge_client(view)
    assert judgement.verdict.ready == health.canary_is_fresh(view.canary_age_s)
    assert (judgement.verdict is Verdict.UP) == (not judgement.causes)


def peer(name: str, canary_age_s: float | None) -> PeerHealth:
    return PeerHealth(name, canary_age_s=canary_age_s)


CARRIED = RangeHealth("10.0.0.0/16", "node", "a")
LOOSE = RangeHealth("100.64.0.0/13", "service")


@pytest.mark.parametrize(
    ("peers", "ranges", "verdict", "sentence"),
    [
        ([peer("a", 1)], [CARRIED], Verdict.UP, "the shoot is reached through 1 of 1 client"),
        ([], [LOOSE], Verdict.DOWN, "the shoot cannot be reached: no client is connected"),
        (
            [peer("a", 60)],
            [CARRIED],
            Verdict.DOWN,
            "the shoot cannot be reached: 1 of 1 client without an answer: a (last answer 1m00s ago)",
        ),
        (
            [peer("a", 1), peer("b", None)],
            [CARRIED],
            Verdict.DEGRADED,
            "the shoot is reached through 1 of 2 clients, but 1 of 2 clients without an answer: b (last answer: never)",
        ),
        (
            [peer("a", 1)],
            [CARRIED, LOOSE],
            Verdict.DEGRADED,
            "the shoot is reached through 1 of 1 client, but 1 of 2 ranges carried by no client: 100.64.0.0/13",
        ),
    ],
)
def test_a_server(peers: list[PeerHealth], ranges: list[RangeHealth], verdict: Verdict, sentence: str) -> None:
    judgement = judge_server(peers, ranges)
    assert (judgement.verdict, judgement.sentence) == (verdict, sentence)


def test_a_server_says_why_nobody_came_in() -> None:
    judgement = judge_server([], [], turned_away="certificate expired (192.0.2.1)")
    assert judgement.causes == (
        "no client is connected; the last one was turned away: certificate expired (192.0.2.1)",
    )


def test_a_server_tells_of_its_own_host_first() -> None:
    judgement = judge_server([peer("a", 60)], [CARRIED], host="EPERM")
    assert judgement.causes == ("this host cannot be set up: EPERM",)
    assert judge_server([peer("a", 1)], [CARRIED], host="EPERM").verdict is Verdict.DEGRADED


def test_long_lists_are_cut() -> None:
    (cause,) = judge_server([peer(f"n{i}", 60) for i in range(500)], []).causes
    assert cause.endswith("n2 (last answer 1m00s ago) and 497 more")


@settings(deadline=None)
@given(PEERS, RANGES, st.sampled_from(["", "EPERM"]))
def test_a_server_is_ready_exactly_when_a_client_answers(
    peers: list[PeerHealth], ranges: list[RangeHealth], host: str
) -> None:
    judgement = judge_server(peers, ranges, host=host)
    assert judgement.verdict.ready == any(health.canary_is_fresh(p.canary_age_s) for p in peers)
    assert (judgement.verdict is Verdict.UP) == (not judgement.causes)


def test_since_keeps_the_time_of_the_change() -> None:
    since = Since(Verdict.DOWN, 1.0)
    assert since.update(Verdict.DOWN, 2.0) == Since(Verdict.DOWN, 1.0)
    assert since.update(Verdict.UP, 3.0) == Since(Verdict.UP, 3.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"), (0.44, "0.4s"), (10, "10s"), (59.9, "59s"), (60, "1m00s"), (185, "3m05s"), (7800, "2h10m"), (86400 * 5 + 3 * 3600, "5d03h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_grant_that_ends_is_told_with_what_is_left_of_it() -> None:
    ending = ClientView(stream_up=True, granted=True, unrenewed_s=720.0, canary_age_s=0.5)
    judgement = judge_client(ending)
    assert judgement.verdict is Verdict.DEGRADED
    assert judgement.sentence == "packets cross the tunnel, but the grant cannot be renewed and ends in 12m00s"
    away = judge_client(ClientView(stream_up=False, granted=True, unrenewed_s=30.0, stream="tcp: refused"))
    assert away.causes == ("there is no stream to the server (tcp: refused); the grant ends in 30s",)


def test_a_refusal_that_ended_the_stream_is_the_cause() -> None:
    refused = ClientView(stream_up=False, granted=False, refusal="revoked: you were revoked")
    assert judge_client(refused).causes == ("the server refused us: revoked: you were revoked",)


def test_a_server_names_who_is_at_work_in_two_places() -> None:
    judgement = judge_server([], [], fenced=["spiffe://a/shoot-client/n1"])
    assert any("at work in two places, and kept out: spiffe://a/shoot-client/n1" in cause for cause in judgement.causes)
