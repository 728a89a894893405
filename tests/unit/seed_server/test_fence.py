"""Two processes with one identity are told from one that was restarted."""

from seed_server.fence import QUIET_S, WINDOW_S, Fence


def test_a_restart_is_no_conflict() -> None:
    fence = Fence()
    assert not any(fence.sight("n1", f"process-{n}", float(n)) for n in range(50))
    assert (fence.contested, fence.fenced(50.0)) == (0, ())


def test_renewals_and_new_streams_of_one_process_are_none() -> None:
    fence = Fence()
    assert not any(fence.sight("n1", "a", float(n)) for n in range(0, 10_000, 7))


def test_who_was_replaced_and_comes_back_is_one_of_two() -> None:
    fence = Fence()
    assert not fence.sight("n1", "real", 0.0)
    assert not fence.sight("n1", "thief", 5000.0)
    assert fence.sight("n1", "real", 5001.0)
    assert fence.sight("n1", "thief", 5001.5)
    assert not fence.sight("n2", "real", 5002.0), "another identity"
    assert (fence.contested, fence.fenced(5002.0)) == (1, ("n1",))


def test_both_stay_out_until_one_is_gone() -> None:
    fence, now = Fence(), 0.0
    for process in ("real", "thief", "real"):
        fence.sight("n1", process, now)
    for _ in range(20):  # both come back each minute
        now += 60.0
        assert fence.sight("n1", "thief", now) and fence.sight("n1", "real", now)
    assert fence.contested == 1
    last = now
    while fence.sight("n1", "real", now):
        now += 60.0
    assert QUIET_S <= now - last <= QUIET_S + 60.0
    assert fence.fenced(now) == ()
    assert not fence.sight("n1", "thief", now + 1.0)
    assert fence.sight("n1", "real", now + 2.0), "seen again at once"
    assert fence.contested == 2


def test_who_comes_back_after_long_has_been_away() -> None:
    fence = Fence()
    fence.sight("n1", "a", 0.0)
    fence.sight("n1", "b", 10.0)
    assert not fence.sight("n1", "a", 10.0 + WINDOW_S + 1.0)


def test_it_does_not_grow() -> None:
    fence = Fence()
    for n in range(100):
        fence.sight("n1", f"p{n}", float(n))
    assert len(fence._by_key["n1"].seen) <= 8
    fence.forget(before=1000.0)
    assert not fence._by_key
