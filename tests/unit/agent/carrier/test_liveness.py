"""When a stream is asked for a sign of life, when it is given up, and when it is replaced."""

from __future__ import annotations

import random

import pytest

from agent.carrier.liveness import (
    IMPATIENT_S,
    JITTER,
    LIFETIME_BYTES,
    LIFETIME_S,
    PASSIVE_QUIET_S,
    QUIET_S,
    SILENCE_REMEMBERED_S,
    Lifetime,
    Liveness,
    Verdict,
)


def silence(liveness: Liveness, unanswered_since: float | None, start: float) -> list[tuple[float, Verdict]]:
    """What happens from `start` on when nothing is received any more."""
    now, happened = start, list[tuple[float, Verdict]]()
    while not happened or happened[-1][1] is not Verdict.DEAD:
        now = max(now, liveness.next_wakeup(unanswered_since))
        verdict = liveness.poll(unanswered_since, now)
        assert verdict is not Verdict.WAIT, "next_wakeup names a moment at which nothing is due"
        happened.append((now - start, verdict))
    return happened


def test_an_idle_stream_is_asked_after_5_s_and_dead_after_three_questions() -> None:
    happened = silence(Liveness(100.0), None, 100.0)
    assert [v for _, v in happened] == [Verdict.ASK] * 3 + [Verdict.DEAD]
    assert [t for t, _ in happened] == pytest.approx([5.0, 5.7, 6.4, 7.1])


def test_one_end_may_be_more_patient_so_that_only_the_other_asks() -> None:
    assert Liveness(0.0, quiet_s=PASSIVE_QUIET_S).next_wakeup(None) == PASSIVE_QUIET_S > QUIET_S + 0.5


def test_a_dead_path_under_traffic_is_noticed_within_3_s() -> None:
    liveness = Liveness(0.0)
    for tick in range(1000):
        liveness.on_rtt(0.2)
        liveness.on_received(tick / 100)
    happened = silence(liveness, 10.0, 10.0)
    assert happened[-1][1] is Verdict.DEAD and happened[-1][0] < 3.0
    assert len(happened) == 4


def test_a_long_silence_before_the_data_does_not_count_against_the_peer() -> None:
    liveness = Liveness(0.0)
    assert liveness.next_wakeup(4.9) == pytest.approx(4.9 + IMPATIENT_S)
    assert liveness.poll(4.9, 5.1) is Verdict.WAIT


def test_any_byte_is_a_sign_of_life() -> None:
    liveness = Liveness(0.0)
    assert liveness.poll(None, 5.0) is Verdict.ASK
    assert liveness.poll(None, 5.7) is Verdict.ASK
    liveness.on_received(5.8)
    assert liveness.next_wakeup(None) == 5.8 + QUIET_S
    assert liveness.poll(None, 10.7) is Verdict.WAIT
    assert [v for _, v in silence(liveness, None, 10.8)] == [Verdict.ASK] * 3 + [Verdict.DEAD]


def test_a_process_that_was_stopped_asks_before_it_judges() -> None:
    liveness = Liveness(0.0)
    assert liveness.poll(1.0, 3600.0) is Verdict.ASK
    assert liveness.poll(1.0, 3600.1) is Verdict.WAIT


def test_only_the_answer_to_the_latest_question_is_a_round_trip() -> None:
    liveness = Liveness(0.0)
    assert liveness.on_answer(bytes(8), 1.0) is None, "nothing was asked"
    liveness.poll(None, 5.0)
    first = liveness.question
    liveness.poll(None, 5.7)
    assert liveness.question != first
    assert liveness.on_answer(first, 5.8) is None
    assert liveness.srtt_s is None
    assert liveness.on_answer(liveness.question, 5.8) == pytest.approx(0.1)
    assert liveness.srtt_s == pytest.approx(0.1)


def test_a_path_that_was_silent_and_came_back_is_given_three_times_as_long() -> None:
    liveness = Liveness(0.0)
    for due in (0.7, 1.4, 2.1):
        assert liveness.poll(0.0, due) is Verdict.ASK
    liveness.on_received(2.4)
    assert silence(liveness, 10.0, 10.0)[-1][0] == pytest.approx(3 * 2.4)


def test_the_memory_of_a_silence_fades() -> None:
    liveness = Liveness(0.0)
    for due in (0.7, 1.4, 2.1):
        liveness.poll(0.0, due)
    liveness.on_received(2.4)
    liveness.on_received(2.4 + SILENCE_REMEMBERED_S + 1)
    assert liveness.patience_s == IMPATIENT_S


def test_waiting_for_something_to_do_is_no_silence() -> None:
    liveness, now = Liveness(0.0), 0.0
    for _ in range(100):
        now += QUIET_S
        assert liveness.poll(None, now) is Verdict.ASK
        liveness.on_received(now + 0.05)
        now += 0.05
    assert liveness.patience_s == IMPATIENT_S


def alarms(seed: int, loss: float) -> int:
    """Ten minutes of one exchange after the other, each delayed by retransmissions that double from 300 ms."""
    rng = random.Random(seed)
    liveness, now, dead = Liveness(0.0), 0.0, 0
    while now < 600:
        took, timeout = 0.04, 0.3
        while rng.random() < loss:
            took += timeout
            timeout *= 2
        arrives = now + took
        while (due := liveness.next_wakeup(now)) < arrives:
            if liveness.poll(now, due) is Verdict.DEAD:
                dead += 1
                liveness = Liveness(due)
        liveness.on_received(arrives)
        now = arrives
    return dead


def test_false_alarms_on_lossy_paths_are_rare() -> None:
    assert sum(alarms(seed, 0.05) for seed in range(6)) == 0
    assert sum(alarms(seed, 0.10) for seed in range(6)) <= 3


def test_a_stream_is_replaced_about_hourly_or_after_100_gb() -> None:
    lifetime = Lifetime(1000.0, 0.0)
    assert not lifetime.is_over(1000.0 + LIFETIME_S - 1, LIFETIME_BYTES - 1)
    assert lifetime.is_over(1000.0 + LIFETIME_S, 0)
    assert lifetime.is_over(1000.0, LIFETIME_BYTES)
    assert Lifetime(0.0, 1.0).ends_at == LIFETIME_S * (1 - JITTER)
    assert Lifetime(0.0, 0.5).is_over(0.0, int(LIFETIME_BYTES * (1 - JITTER / 2)))
