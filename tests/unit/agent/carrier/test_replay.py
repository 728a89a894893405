import json

from hypothesis import given
from hypothesis import strategies as st

from agent.carrier.replay import (
    BYTES_BURST,
    BYTES_MAX,
    BYTES_PER_S,
    MESSAGES_BURST,
    MESSAGES_PER_S,
    TYPES_MAX,
    Meter,
    Replay,
    message_type,
)


def text(kind: object, size: int = 0) -> str:
    return json.dumps({"type": kind, "padding": "x" * size})


def test_the_last_of_each_type_is_kept_in_the_order_of_arrival() -> None:
    replay = Replay()
    for kind in ("a", "b", "a", "c"):
        replay.keep(text(kind))
    assert replay.messages() == (text("b"), text("a"), text("c"))


def test_messages_without_a_usable_type_are_not_kept() -> None:
    replay = Replay()
    for message in ("", "[]", "{}", "not json", text(1), text(None), text("x" * 65), "[" * 10_000):
        replay.keep(message)
        assert message_type(message) is None
    assert replay.messages() == ()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 64 * 1024))))
def test_the_kept_is_bounded(arrivals: list[tuple[int, int]]) -> None:
    replay = Replay()
    for kind, size in arrivals:
        replay.keep(text(str(kind), size))
        kept = replay.messages()
        assert len(kept) <= TYPES_MAX and sum(len(message) for message in kept) <= BYTES_MAX
        assert kept[-1] == text(str(kind), size)


def test_a_session_passes_and_a_flood_does_not() -> None:
    meter = Meter()
    assert all(meter.passes(2000, now=index * 1.0) for index in range(1000))
    assert [meter.passes(100, now=1000.0) for _ in range(100)].count(True) == MESSAGES_BURST


def test_the_size_counts_too_and_time_heals() -> None:
    meter = Meter()
    size = 64 * 1024
    passed = [meter.passes(size, now=0.0) for _ in range(20)].count(True)
    assert passed == BYTES_BURST // size
    assert meter.passes(size, now=20 * size / BYTES_PER_S + 20 / MESSAGES_PER_S)


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    meter = Meter()
    assert not all(meter.passes(1, now=-float(index)) for index in range(200))
