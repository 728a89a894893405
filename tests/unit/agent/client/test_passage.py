"""What is concluded from the counts of packets that were let in, and of those that were left."""

from agent.client.passage import WINDOW_S, Passage


def seen(*counts: tuple[float, int, int]) -> Passage:
    passage = Passage()
    for now, opened, passed in counts:
        passage.note({"opened": opened, "passed": passed}, now)
    return passage


def test_nothing_is_said_while_all_that_was_let_in_gets_through() -> None:
    assert seen().trouble("rz0") == ""
    assert seen((0, 0, 0), (3, 900, 900), (6, 1000, 998)).trouble("rz0") == "", "two are on their way"


def test_what_somebody_else_drops_is_told_with_what_to_do() -> None:
    passage = seen((0, 10, 10), (3, 20, 15))
    assert passage.dropped == (5, 10)
    assert "dropped 5 of 10 new connections" in passage.trouble(
        "rz0"
    ) and "accept what comes in by rz0" in passage.trouble("rz0")


def test_it_is_forgotten_once_it_has_stopped() -> None:
    passage = seen((0, 10, 10), (3, 20, 10))
    assert passage.trouble("rz0")
    for step in range(int(WINDOW_S)):
        passage.note({"opened": 20 + step, "passed": 10 + step}, 6.0 + step)
    assert passage.trouble("rz0") == "", "a minute without a drop"


def test_a_table_that_is_replaced_counts_from_nothing() -> None:
    assert seen((0, 500, 500), (3, 4, 0), (6, 8, 4)).dropped == (0, 4)
    assert seen((0, 500, 100), (3, 4, 4)).trouble("rz0") == ""
    passage = Passage()
    passage.note({}, 0.0)
    assert passage.dropped == (0, 0), "no table yet"
