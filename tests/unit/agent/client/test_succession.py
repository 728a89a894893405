"""When a client takes new keys, and when it does not."""

from dataclasses import replace

import pytest

from agent.client.succession import GRACE_S, PATIENCE_S, Act, Beside, Situation, decide

NEXT = "wg-0a1b2c3d"
ALONE = Situation(granted=True, successor="", canary_age_s=0.5, confirmed=False, beside=None)
ASKED = replace(ALONE, successor=NEXT)
TRYING = replace(ASKED, beside=Beside(since=100.0, is_old=False, target=NEXT))
MOVED = replace(ALONE, confirmed=True, beside=Beside(since=100.0, is_old=True))


def beside(seen: Situation, **changes: object) -> Situation:
    assert seen.beside is not None
    return replace(seen, beside=replace(seen.beside, **changes))  # type: ignore[arg-type]


def test_nobody_asked_so_nothing_is_done() -> None:
    assert decide(ALONE, 100.0) is Act.NOTHING


def test_it_makes_a_second_device_when_it_is_asked_to() -> None:
    assert decide(ASKED, 100.0) is Act.MAKE


def test_what_has_failed_is_not_tried_again_at_once() -> None:
    assert decide(replace(ASKED, not_before=101.0), 100.0) is Act.NOTHING
    assert decide(replace(ASKED, not_before=101.0), 101.0) is Act.MAKE


def test_packets_go_by_the_new_device_when_a_canary_has_crossed_there_and_not_before() -> None:
    assert decide(TRYING, 101.0) is Act.NOTHING
    assert decide(beside(TRYING, canary_age_s=9.0), 101.0) is Act.NOTHING
    assert decide(beside(TRYING, canary_age_s=0.2), 101.0) is Act.MOVE


def test_it_does_not_wait_for_the_old_device_to_work() -> None:
    assert decide(beside(replace(TRYING, granted=False, successor=""), canary_age_s=0.2), 101.0) is Act.MOVE


@pytest.mark.parametrize("why", [{"refused": True}, {"since": 101.0 - PATIENCE_S}])
def test_a_new_device_that_does_not_work_is_given_up(why: dict[str, object]) -> None:
    assert decide(beside(TRYING, **why), 101.0) is Act.GIVE_UP


@pytest.mark.parametrize("successor", ["", "wg-ffffffff"])
def test_a_new_device_that_the_server_does_not_name_is_not_wanted(successor: str) -> None:
    """It has another key by now, or has ended the rotation: the stream leads elsewhere than it was meant to."""
    assert decide(beside(replace(TRYING, successor=successor), canary_age_s=0.2), 101.0) is Act.TURN_BACK


def test_the_old_device_stays_until_what_is_on_its_way_has_arrived() -> None:
    assert decide(MOVED, 100.0 + GRACE_S - 0.1) is Act.NOTHING
    assert decide(MOVED, 100.0 + GRACE_S) is Act.LEAVE


def test_the_old_device_stays_until_the_server_sends_by_the_new_one_and_packets_cross() -> None:
    assert decide(replace(MOVED, confirmed=False), 200.0) is Act.NOTHING
    assert decide(replace(MOVED, canary_age_s=5.0), 200.0) is Act.NOTHING
    assert decide(replace(MOVED, canary_age_s=None), 200.0) is Act.NOTHING
