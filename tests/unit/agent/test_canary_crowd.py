"""Canaries of thousands of clients: paced, and not taken for a thousand bad paths when this host has no time."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from agent.canary import AT_ONCE, HURRIED_MAX, PACE, PORT, TICK_S, Prober
from agent.pulse import PATIENCE_MAX_S, PATIENCE_S, RELIED_ON_INTERVAL_S, Pulse, Standing

STANDBY_S = 3.0


@dataclass
class Crowd:
    """A prober and its clients, each of which answers within the same tick, unless it is `mute`."""

    count: int
    relied_on: int = 20
    now: float = 100.0
    sent: list[tuple[str, int]] = field(default_factory=list)
    mute: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.prober = Prober(lambda: self.now)
        self.prober._port.send = self._send  # type: ignore[method-assign]
        for number in range(self.count):
            interval_s = RELIED_ON_INTERVAL_S if number % self.relied_on == 0 else STANDBY_S
            pulse = Pulse(self.now, Standing.WELL, interval_s=interval_s)
            self.prober.watch(self.address(number), pulse)

    def address(self, number: int) -> str:
        return str(ip_address("10.0.0.0") + number)

    def pulse(self, number: int) -> Pulse:
        return self.prober.targets[self.address(number)].pulse

    def _send(self, payload: bytes, to: tuple[str, int]) -> None:
        self.sent.append((to[0], struct.unpack_from("!4sII", payload)[1]))

    def tick(self, *, answered: bool = True, after_s: float = TICK_S) -> list[tuple[str, int]]:
        """The questions of one tick, which begins after so long."""
        self.now += after_s
        self.sent = []
        self.prober.ask()
        asked = self.sent
        if answered:
            self.answer(asked)
        return asked

    def answer(self, questions: list[tuple[str, int]]) -> None:
        for address, number in questions:
            if address not in self.mute:
                self.prober._answered(struct.pack("!4sII", b"rzC!", number, 0), (address, PORT))

    def run(self, seconds: float) -> list[int]:
        return [len(self.tick()) for _ in range(round(seconds / TICK_S))]

    @property
    def per_s(self) -> float:
        return sum(1 / target.pulse.interval_s for target in self.prober.targets.values())


@pytest.fixture
def crowd() -> Crowd:
    crowd = Crowd(2000)
    crowd.run(30.0)
    return crowd


def test_a_moment_without_time_makes_no_burst(crowd: Crowd) -> None:
    most = max(AT_ONCE, round(PACE * crowd.per_s * TICK_S))
    assert len(crowd.tick(after_s=2.0)) == most < 200
    assert max(crowd.run(20.0)) <= most
    asked = Counter(address for _ in range(100) for address, _ in crowd.tick())
    assert set(asked) == set(crowd.prober.targets), "and nobody is forgotten"
    assert asked[crowd.address(0)] == pytest.approx(10.0 / RELIED_ON_INTERVAL_S, abs=3)


def test_few_are_all_asked_at_once() -> None:
    assert len(Crowd(50).tick()) == 50


def test_of_thousands_that_are_late_together_only_some_are_asked_in_a_hurry() -> None:
    """Otherwise a busy server would ask ten times as much, and be busier."""
    crowd = Crowd(1000)
    crowd.run(10.0)
    asked = Counter[str]()
    for _ in range(40):
        questions = crowd.tick(answered=False)
        assert len(questions) <= HURRIED_MAX + AT_ONCE
        asked.update(address for address, _ in questions)
    relied_on = [crowd.address(number) for number in range(0, 1000, crowd.relied_on)]
    assert min(asked[address] for address in relied_on) >= 8, "enough to know who of them is dead"
    assert len(asked) == 1000, "and the others take turns"


def test_answers_that_are_late_because_of_us_make_nobody_patient(crowd: Crowd) -> None:
    """All wait in the socket while this process does something else for a second."""
    waiting = [question for _ in range(10) for question in crowd.tick(answered=False)]
    assert crowd.prober.stalled
    crowd.answer(waiting)
    crowd.run(5.0)
    assert {target.pulse.patience_s for target in crowd.prober.targets.values()} == {PATIENCE_S}


def test_a_path_of_its_own_that_is_late_makes_patient(crowd: Crowd) -> None:
    crowd.mute = frozenset({crowd.address(0)})
    questions = [question for _ in range(12) for question in crowd.tick() if question[0] in crowd.mute]
    crowd.mute = frozenset()
    crowd.answer(questions)
    assert crowd.pulse(0).patience_s > PATIENCE_S and crowd.pulse(20).patience_s == PATIENCE_S


def test_while_nobody_answers_in_time_nobody_is_given_up_soon(crowd: Crowd) -> None:
    crowd.run(1.0)
    silent_s = 0.0
    while not any(
        target.pulse.judge(crowd.now, stalled=crowd.prober.stalled) for target in crowd.prober.targets.values()
    ):
        crowd.tick(answered=False)
        silent_s += TICK_S
    assert silent_s >= PATIENCE_MAX_S


def test_many_that_die_at_once_are_found_as_soon_as_one(crowd: Crowd) -> None:
    """A whole zone without power: others go on answering."""
    crowd.mute = frozenset(crowd.address(number) for number in range(0, 2000, 4))
    silent_s = 0.0
    while not crowd.pulse(0).judge(crowd.now, stalled=crowd.prober.stalled):
        crowd.tick()
        silent_s += TICK_S
    assert silent_s <= RELIED_ON_INTERVAL_S + PATIENCE_S + 2 * TICK_S
