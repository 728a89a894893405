from hypothesis import given
from hypothesis import strategies as st

from agent.backoff import Backoff


def upper(_low: float, high: float) -> float:
    return high


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    backoff = Backoff(first_s=0.05, cap_s=0.8, uniform=upper)
    assert [round(backoff.next(), 3) for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 0.8, 0.8]


def test_reset_starts_again_near_zero() -> None:
    backoff = Backoff(first_s=0.05, cap_s=30.0, uniform=upper)
    for _ in range(20):
        backoff.next()
    backoff.reset()
    assert backoff.next() == 0.05


def test_the_jitter_is_full() -> None:
    backoff = Backoff(first_s=1.0, cap_s=1.0)
    delays = [backoff.next() for _ in range(1000)]
    assert min(delays) < 0.1 and max(delays) > 0.9
    assert 0.45 < sum(delays) / len(delays) < 0.55


@given(st.floats(1e-3, 10), st.floats(1e-3, 1e6), st.integers(0, 10_000))
def test_no_delay_is_longer_than_the_cap(first_s: float, cap_s: float, failures: int) -> None:
    assert 0.0 <= Backoff(first_s, cap_s, failures=failures).next() <= cap_s
