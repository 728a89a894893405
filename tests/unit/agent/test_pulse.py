"""Who is lost and who is not: by hand, and by the simulated thousand."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agent.canary import ALIVE_EVERY_S, ALIVE_TIMES, LATE, TICK_S, USUAL_MIN_S, Target
from agent.pulse import HOLD_S, PATIENCE_MAX_S, RELIED_ON_INTERVAL_S, Cause, Pulse, Standing

WELL, UNPROVEN, LOST = Standing.WELL, Standing.UNPROVEN, Standing.LOST
#: When the answer to a question that is asked at a time comes; None: never.
Path = Callable[[float], float | None]


@dataclass
class Client:
    """One client as the server sees it: asked and judged every TICK_S, over a path that loses and delays."""

    path: Path
    now: float = 0.0
    pulse: Pulse = field(default_factory=lambda: Pulse(0.0))
    answers: list[tuple[float, int, float]] = field(default_factory=list)
    standings: list[tuple[float, Standing]] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.target = Target(self.pulse)

    def hear(self) -> None:
        while self.answers and self.answers[0][0] <= self.now:
            at, number, asked_at = heapq.heappop(self.answers)
            self.answered(at, number, asked_at)

    def answered(self, at: float, number: int, asked_at: float) -> None:
        if number > self.target.answered:
            self.target.answered, self.target.rtt_s = number, at - asked_at
            self.pulse.answered(at)

    def ask(self, number: int) -> None:
        if (arrives := self.path(self.now)) is not None:
            heapq.heappush(self.answers, (arrives, number, self.now))

    def run(self, until: float) -> Client:
        target, pulse = self.target, self.pulse
        while self.now < until:
            self.now += TICK_S
            self.hear()
            if pulse.judge(self.now):
                self.standings.append((self.now, pulse.standing))
            if target.is_due(self.now):
                self.asked += 1
                target.asked += 1
                target.asked_at.append(self.now)
                pulse.asked(self.now)
                self.ask(target.asked)
        return self

    def losses(self) -> list[float]:
        return [at for at, standing in self.standings if standing is LOST]


def clean(rtt_s: float = 0.02) -> Path:
    return lambda now: now + rtt_s


def lossy(seed: int, loss: float = 0.2, rtt_s: float = 0.02) -> Path:
    """Each way loses every packet with this probability."""
    dice = random.Random(seed)
    return lambda now: now + rtt_s if dice.random() >= loss and dice.random() >= loss else None


class Wire:
    """One way of a TCP connection that loses segments: a lost one comes again after a timeout that doubles, and what is
    behind it waits (RFC 6298, 200 ms at first as in Linux). `linear`: as often as Linux keeps the timeout from doubling on
    connections with little in flight, where it is asked to."""

    def __init__(self, seed: int, loss: float, rtt_s: float, linear: int) -> None:
        self._dice, self._loss, self._rtt_s, self._linear = random.Random(seed), loss, rtt_s, linear
        self._free_at = 0.0

    def send(self, now: float) -> float:
        """When what is sent now arrives."""
        self._free_at = max(self._free_at, now + self._sent())
        return self._free_at

    def _sent(self) -> float:
        timeout, passed, tries = 0.2 + self._rtt_s, 0.0, 0
        while self._dice.random() < self._loss:
            passed += timeout
            tries += 1
            timeout *= 2 if tries > self._linear else 1
        return passed + self._rtt_s / 2


class Stalling:
    """Questions and answers in one TCP connection with the same loss."""

    def __init__(self, seed: int, loss: float = 0.2, rtt_s: float = 0.02, linear: int = 6) -> None:
        self._wires = Wire(2 * seed, loss, rtt_s, linear), Wire(2 * seed + 1, loss, rtt_s, linear)

    def __call__(self, now: float) -> float:
        there, back = self._wires
        return back.send(there.send(now))


@dataclass
class ProxiedClient(Client):
    """Behind a proxy near the server, which doubles its timeouts towards the client. The client's end does not, and says that it lives
    when it is not asked. From `dies_at` on it is silent, `loss` is of the long way between client and proxy."""

    seed: int = 0
    loss: float = 0.2
    dies_at: float = float("inf")
    events: list[tuple[float, str, int, float]] = field(default_factory=list)
    was_asked_at: float = 0.0
    signs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.there, self.back = Wire(self.seed, self.loss, 0.02, 0), Wire(-self.seed - 1, self.loss, 0.02, 6)

    def ask(self, number: int) -> None:
        heapq.heappush(self.events, (self.there.send(self.now), "question", number, self.now))

    def hear(self) -> None:
        while self.events and self.events[0][0] <= self.now:
            at, kind, number, asked_at = heapq.heappop(self.events)
            self.live(at)
            if kind == "answer":
                self.answered(at, number, asked_at)
            elif kind == "sign":
                self.pulse.heard(at)
            elif at < self.dies_at:
                heapq.heappush(self.events, (self.back.send(at), "answer", number, asked_at))
                late_s = LATE * max(USUAL_MIN_S, at - self.was_asked_at)
                self.was_asked_at = at
                self.signs = [at + late_s + ALIVE_EVERY_S * turn for turn in range(ALIVE_TIMES)]
        self.live(self.now)

    def live(self, now: float) -> None:
        while self.signs and self.signs[0] <= min(now, self.dies_at):
            heapq.heappush(self.events, (self.back.send(self.signs.pop(0)), "sign", 0, 0.0))


def cut(path: Path, at: float, until: float = float("inf")) -> Path:
    return lambda now: None if at <= now < until else path(now)


def test_a_new_client_is_well_with_its_first_answer() -> None:
    client = Client(clean()).run(1.0)
    assert [standing for _, standing in client.standings] == [WELL] and client.standings[0][0] < 0.3


def test_a_client_that_never_answers_is_not_well_and_not_asked_too_often() -> None:
    client = Client(lambda now: None).run(30.0)
    assert [standing for _, standing in client.standings] == [LOST] and client.asked < 80


@pytest.mark.parametrize("rtt_s", [0.001, 0.05, 0.25])
def test_one_that_dies_is_lost_within_three_seconds_whenever_it_happens(rtt_s: float) -> None:
    worst = 0.0
    for step in range(40):
        dies = 10 + step * 0.037
        client = Client(cut(clean(rtt_s), dies), pulse=Pulse(0.0, interval_s=RELIED_ON_INTERVAL_S)).run(20.0)
        (lost_at,) = client.losses()
        worst = max(worst, lost_at - dies)
    assert worst <= 2.5


def test_a_fifth_lost_each_way_for_ten_minutes_loses_nobody() -> None:
    clients = [Client(lossy(seed)).run(600.0) for seed in range(12)]
    assert [client.losses() for client in clients] == [[]] * 12
    assert max(client.asked for client in clients) < 3 * 600, "and is no burden"


def test_nor_does_it_when_tcp_makes_stalls_of_the_losses() -> None:
    assert [Client(Stalling(seed)).run(600.0).losses() for seed in range(12)] == [[]] * 12


def test_nor_does_a_proxy_whose_tcp_doubles_its_timeouts() -> None:
    clients = [ProxiedClient(clean(), seed=seed) for seed in range(12)]
    assert [client.run(600.0).losses() for client in clients] == [[]] * 12


def test_only_because_it_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pulse, "heard", lambda self, now: None)
    assert any(ProxiedClient(clean(), seed=seed).run(600.0).losses() for seed in range(12))


def test_one_that_dies_behind_a_proxy_is_lost_as_soon() -> None:
    for step in range(20):
        dies_at = 10 + step * 0.037
        pulse = Pulse(0.0, interval_s=RELIED_ON_INTERVAL_S)
        (lost_at,) = ProxiedClient(clean(), pulse=pulse, loss=0.0, dies_at=dies_at).run(20.0).losses()
        assert lost_at - dies_at <= 2.5


def test_who_says_that_it_lives_and_never_answers_is_lost_in_the_end() -> None:
    pulse = Pulse(0.0, WELL)
    pulse.asked(10.0)
    for turn in range(400):
        now = 10.0 + turn / 10
        pulse.asked(now)
        pulse.heard(now)
        if pulse.judge(now):
            break
    assert pulse.standing is LOST and 30 <= now - 10.0 < 31


def test_on_a_bad_path_too_one_that_dies_is_lost_soon() -> None:
    for seed in range(10):
        client = Client(cut(lossy(seed), 120.0)).run(130.0)
        (lost_at,) = client.losses()
        assert lost_at - 120.0 < 1.2 + PATIENCE_MAX_S


def test_one_that_comes_back_is_held_and_each_time_longer() -> None:
    def path(now: float) -> float | None:
        return now + 0.02 if now % 100 < 50 else None

    client = Client(path).run(420.0)
    lost = client.losses()
    well = [at for at, standing in client.standings if standing is WELL]
    assert len(lost) == 4 and 14 < well[1] - 100 < 17 and 29 < well[2] - 200 < 32
    assert len(well) == 3, "held for a minute, it is lost before it is well again"


def test_there_is_no_hold_when_nobody_is_better() -> None:
    pulse = Pulse(0.0, LOST, Cause.SILENT, hold_s=HOLD_S)
    pulse.answered(1.0)
    assert pulse.judge(1.0, patient=False) and pulse.standing is WELL


def test_a_stream_that_is_made_again_at_once_loses_nobody() -> None:
    pulse = Pulse(0.0, WELL)
    pulse.stream(5.0)
    assert not pulse.judge(5.9)
    pulse.stream(None)
    assert not pulse.judge(7.0)
    pulse.stream(8.0)
    assert pulse.judge(9.0) and pulse.standing is LOST and pulse.cause is Cause.STREAM
    pulse.answered(9.5)
    assert not pulse.judge(9.5), "an answer that was on its way does not make a stream"
    pulse.stream(None)
    pulse.answered(10.0)
    assert pulse.judge(10.0) and pulse.standing is UNPROVEN


def test_a_server_that_was_suspended_loses_nobody() -> None:
    client = Client(clean()).run(10.0)
    client.answers.clear()
    client.now += 300
    assert client.run(client.now + 10).losses() == []
