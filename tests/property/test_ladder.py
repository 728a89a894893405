"""The ladder between two paths, over any history of canaries: it never flaps, and never stays where nothing crosses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.ladder import ANSWERS_S, HOLD_MAX_S, HOLD_S, PROVE_S, SILENT_S, Ladder, Path

TICK_S = 0.25

#: Phases of a path's life: how long, and whether its canaries cross.
phases = st.lists(st.tuples(st.floats(0.25, 40.0), st.booleans()), max_size=12)


def ages(life: list[tuple[float, bool]], ticks: int) -> list[float | None]:
    """The age of the last canary at each tick; one crosses every tick while the path works."""
    found: list[float | None] = []
    works = [ok for length, ok in life for _ in range(round(length / TICK_S))]
    last: int | None = None
    for tick in range(ticks):
        if tick < len(works) and works[tick]:
            last = tick
        found.append(None if last is None else (tick - last) * TICK_S)
    return found


def climb(stream: list[float | None], direct: list[float | None]) -> list[Ladder]:
    ladder, seen = Ladder(), []
    for tick, (s, d) in enumerate(zip(stream, direct, strict=True)):
        ladder = ladder.step(s, d, tick * TICK_S)
        seen.append(ladder)
    return seen


@given(phases, phases)
def test_whatever_happens(stream_life: list[tuple[float, bool]], direct_life: list[tuple[float, bool]]) -> None:
    ticks = round(sum(length for length, _ in direct_life) / TICK_S) + 40
    stream, direct = ages(stream_life, ticks), ages(direct_life, ticks)
    seen = climb(stream, direct)
    left_at: float | None = None
    for tick in range(1, ticks):
        now, before, after = tick * TICK_S, seen[tick - 1], seen[tick]
        s, d = stream[tick], direct[tick]
        stream_works, direct_works = s is not None and s < SILENT_S, d is not None and d < SILENT_S
        if after.path is Path.DIRECT and not direct_works:
            assert not stream_works, "it stays where nothing crosses only if nothing crosses there either"
        if (before.path, after.path) == (Path.DIRECT, Path.STREAM):
            assert not direct_works and stream_works
            left_at = now
        if (before.path, after.path) == (Path.STREAM, Path.DIRECT):
            assert d is not None and d < ANSWERS_S
            if stream_works:
                assert left_at is None or now - left_at >= HOLD_S, "held down"
                assert all(x is not None and x < ANSWERS_S for x in direct[tick - round(PROVE_S / TICK_S) : tick + 1])
        assert after.moves - before.moves == (after.path is not before.path)
        assert after.hold_s <= HOLD_MAX_S


def test_it_starts_on_the_stream_and_moves_up_once_the_direct_path_has_proved_itself() -> None:
    seen = climb([0.0] * 40, [None] * 4 + [0.0] * 36)
    moved = next(tick for tick, ladder in enumerate(seen) if ladder.path is Path.DIRECT)
    assert moved * TICK_S == 1.0 + PROVE_S


def test_without_a_stream_that_works_the_direct_path_is_taken_at_once() -> None:
    assert climb([None] * 3, [None, 0.0, 0.0])[1].path is Path.DIRECT


def test_a_path_that_fails_again_and_again_is_held_down_longer_each_time() -> None:
    ladder, holds, now = Ladder(), [], 0.0
    for _ in range(8):
        while ladder.path is Path.STREAM:
            now += TICK_S
            ladder = ladder.step(0.0, 0.0, now)
        now += 5
        ladder = ladder.step(0.0, 10.0, now)
        holds.append(ladder.hold_s)
    assert holds == [30, 60, 120, 240, 480, 600, 600, 600]


def test_a_path_that_held_for_long_is_forgiven() -> None:
    ladder = Ladder(Path.DIRECT, since=0.0, hold_s=480.0)
    assert ladder.step(0.0, 10.0, 700.0).hold_s == HOLD_S
