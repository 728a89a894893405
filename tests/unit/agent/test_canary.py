"""The canary on loopback, and what it concludes from lost and late datagrams."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest

from agent.canary import EAGER, EAGER_S, PORT, TICK_S, Prober, Responder, Target
from agent.pulse import INTERVAL_S, Pulse

LO = ip_address("127.0.0.1")
LO6 = ip_address("::1")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[LO, LO6])
async def pair(clock: Clock, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Prober, Responder]]:
    prober, responder = Prober(clock), Responder(clock)
    assert responder.open("lo", request.param) and prober.open("lo", request.param)
    prober.watch(str(request.param), Pulse(clock.now))
    yield prober, responder
    prober.close()
    responder.close()


def only(prober: Prober) -> Target:
    (target,) = prober.targets.values()
    return target


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_a_question_is_answered_and_the_second_one_confirms_the_answer(
    pair: tuple[Prober, Responder], clock: Clock
) -> None:
    prober, responder = pair
    assert only(prober).age_s(clock.now) is None and responder.age_s(clock.now) is None
    prober.ask()
    await turns()
    assert only(prober).age_s(clock.now) == 0.0
    assert responder.age_s(clock.now) is None, "that our answer arrived is only known with the next question"
    clock.now += 1
    prober.ask()
    await turns()
    assert responder.age_s(clock.now) == 0.0
    clock.now += 7
    assert only(prober).age_s(clock.now) == 7.0 and responder.age_s(clock.now) == 7.0


async def test_what_is_watched_changes_without_forgetting(pair: tuple[Prober, Responder]) -> None:
    prober, _ = pair
    prober.ask()
    await turns()
    (known,) = prober.targets
    prober.watch(known, prober.targets[known].pulse)
    prober.watch("192.0.2.77", Pulse(0.0))
    assert prober.targets[known].answered == 1 and prober.targets["192.0.2.77"].answered_at is None
    prober.watch(known, Pulse(0.0))
    assert prober.targets[known].answered == 0, "another client has this address now"
    prober.forget(known)
    prober.forget("192.0.2.77")
    assert not prober.targets


def answer(prober: Prober, number: int, sender: str) -> None:
    prober._answered(struct.pack("!4sII", b"rzC!", number, 0), (sender, PORT))


async def test_late_answers_count_and_stale_or_forged_ones_do_not(pair: tuple[Prober, Responder], clock: Clock) -> None:
    prober, responder = pair
    responder.close()
    (address,) = prober.targets
    for _ in range(5):
        prober.ask()
        clock.now += 1
    target = only(prober)
    answer(prober, 2, address)
    assert only(prober).answered_at is None, "three intervals old"
    answer(prober, 9, address)
    answer(prober, 5, "192.0.2.1")
    prober._answered(b"short", (address, PORT))
    prober._answered(struct.pack("!4sII", b"rzC?", 5, 0), (address, PORT))
    assert only(prober).answered_at is None
    answer(prober, 4, address)
    assert target.answered_at == clock.now and target.rtt_s == 2.0
    clock.now += 1
    answer(prober, 4, address)
    assert target.answered_at == clock.now - 1, "an answer counts once"


async def test_the_responder_ignores_everything_else(pair: tuple[Prober, Responder]) -> None:
    _, responder = pair
    for payload in (b"", b"x" * 12, b"rzC!" + bytes(8), b"rzC?" + bytes(7)):
        responder._asked(payload, ("127.0.0.1", 9))
    assert responder.asked_at is None


async def test_no_device_is_no_error(clock: Clock) -> None:
    prober = Prober(clock)
    assert not prober.open("rz-absent", LO) and not prober.is_open
    prober.watch("127.0.0.1", Pulse(0.0))
    prober.ask()
    responder = Responder(clock)
    assert not responder.open("lo", ip_address("192.0.2.1"))
    responder.poke(LO)


async def test_a_poke_is_one_datagram_that_means_nothing(clock: Clock) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.3", PORT))
        server.settimeout(2)
        responder = Responder(clock)
        assert responder.open("lo", LO)
        responder.poke(ip_address("127.0.0.3"))
        assert len(server.recv(100)) == 12
        responder.close()


async def test_a_client_that_is_not_asked_any_more_says_that_it_lives(
    pair: tuple[Prober, Responder], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.canary.USUAL_MIN_S", 0.02)
    monkeypatch.setattr("agent.canary.ALIVE_EVERY_S", 0.01)
    monkeypatch.setattr("agent.canary.ALIVE_TIMES", 3)
    prober, _ = pair
    heard: list[float] = []
    monkeypatch.setattr(Pulse, "heard", lambda self, now: heard.append(now))
    prober.ask()
    async with asyncio.timeout(10):
        while len(heard) < 3:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(heard) == 3, "not for ever"


async def test_some_questions_in_a_hurry_do_not_make_a_client_think_that_it_is_forgotten(
    pair: tuple[Prober, Responder], clock: Clock
) -> None:
    """At a busy server thousands of them would talk four times a second, each time that it was in a hurry."""
    _, responder = pair
    for pause_s in (3.0, 3.0, 0.1, 0.1):
        clock.now += pause_s
        responder._asked(struct.pack("!4sII", b"rzC?", 1, 0), ("127.0.0.1", 9))
    assert responder._usual_s > 1.0
    for _ in range(10):
        clock.now += 0.5
        responder._asked(struct.pack("!4sII", b"rzC?", 1, 0), ("127.0.0.1", 9))
    assert responder._usual_s == pytest.approx(0.5), "but a new habit is soon known"


async def test_a_sign_of_life_is_no_answer(pair: tuple[Prober, Responder], clock: Clock) -> None:
    prober, responder = pair
    responder.close()
    prober.ask()
    (address,) = prober.targets
    prober._answered(struct.pack("!4sII", b"rzC.", 1, 0), (address, PORT))
    prober._answered(struct.pack("!4sII", b"rzC.", 1, 0), ("192.0.2.1", PORT))
    assert only(prober).answered_at is None and only(prober).pulse.heard_at == clock.now


def ask(target: Target, now: float) -> None:
    target.asked += 1
    target.asked_at.append(now)
    target.pulse.asked(now)


def test_a_target_is_asked_often_until_it_is_known_and_then_once_a_second() -> None:
    target, asked = Target(Pulse(0.0)), []
    for tick in range(200):
        now = tick * TICK_S
        if target.is_due(now):
            ask(target, now)
            asked.append(tick)
            if tick >= 40:
                target.answered = target.asked
                target.pulse.answered(now)
    assert asked[:21] == list(range(0, 42, 2))
    assert asked[21:] == list(range(50, 200, 10))


def test_one_that_misses_a_question_is_asked_often_at_once_but_not_for_ever() -> None:
    pulse = Pulse(0.0)
    target, asked = Target(pulse, asked=9, answered=9), []
    pulse.answered(0.0)
    for tick in range(100):
        now = 1 + tick * TICK_S
        pulse.judge(now)
        if target.is_due(now):
            ask(target, now)
            asked.append(tick)
    assert asked[:15] == [0, *range(3, 17)], "suspected after a quarter of a second, lost after 1.7"
    assert asked[15:] == list(range(26, 100, 10))


def test_one_that_was_never_heard_of_is_not_asked_often_for_ever() -> None:
    target = Target(Pulse(0.0), asked=EAGER)
    target.asked_at.append(0.0)
    target.pulse.asked(0.0)
    assert not target.is_due(EAGER_S) and target.is_due(INTERVAL_S)


async def test_a_long_question_gets_an_answer_as_long(clock: Clock) -> None:
    """What a path's MTU swallows is not taken for a path that works."""
    prober, responder = Prober(clock, 1372), Responder(clock)
    sent: list[bytes] = []
    prober._port.send = responder._port.send = lambda payload, to: sent.append(payload)  # type: ignore[method-assign]
    prober.watch("192.0.2.1", Pulse(clock.now))
    prober.ask()
    responder._asked(sent[0], ("192.0.2.9", 1))
    assert [len(payload) for payload in sent] == [1372, 1372]
    prober._answered(sent[1][:12], ("192.0.2.1", PORT))
    assert prober.targets["192.0.2.1"].answered == 0
    prober._answered(sent[1], ("192.0.2.1", PORT))
    assert prober.targets["192.0.2.1"].answered == 1
