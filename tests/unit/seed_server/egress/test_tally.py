"""Counts, buckets, and which failures are worth a line in the log."""

from seed_server.egress.tally import BOUNDS_S, Tally
from seed_server.egress.verdict import forbidden, tunnel_down


def test_successes_fall_into_buckets() -> None:
    tally = Tally()
    for seconds in (0.0005, 0.001, 0.002, 60.0):
        tally.succeeded(seconds)
    latency = tally.latency()
    assert latency[0] == (0.001, 2)
    assert latency[1] == (0.0025, 1)
    assert latency[-1] == (-1.0, 1)
    assert len(latency) == len(BOUNDS_S) + 1
    assert tally.rows() == (("dial", "ok", 4),)
    assert tally.latency_sum_s == 60.0035


def test_failures_are_counted_by_stage_and_result_and_the_last_one_is_kept() -> None:
    tally = Tally()
    tally.failed(tunnel_down("no client for 1.0s"), "10.0.0.1:80")
    tally.failed(forbidden("outside", "words"), "")
    assert tally.rows() == (("policy", "outside", 1), ("tunnel", "tunnel-down", 1))
    assert tally.last_failure == "words"


def test_of_each_kind_one_line_a_minute() -> None:
    tally = Tally()
    down = tunnel_down("x")
    assert [tally.is_news(down, now) for now in (0.0, 1.0, 59.9, 60.0, 61.0)] == [True, False, False, True, False]
    assert tally.is_news(forbidden("outside", "x"), 1.0)
