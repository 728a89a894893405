"""The gate answers the carrier's questions and lets everything else pass."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.carrier.api import Admit, Command, Event, GetStats, Presented, Ready, Turn
from agent.enrolment import Line, digest_of, made
from agent.identity import Identity, Role
from agent.onetime import taken
from lab.tokens import ISSUER, SUBJECT, Issuer, claims
from seed_server.audit import Journal
from seed_server.tokens.desk import Desk
from seed_server.tokens.gate import Gate
from seed_server.tokens.keys import KeyRing, Verifier
from seed_server.tokens.policy import Subject, TokenPolicy
from seed_server.tokens.spent import SpentTokens
from seed_server.warden import Warden

WALL = 1_700_000_000.0


async def test_questions_are_answered_and_other_events_pass(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    issuer = Issuer()

    async def source() -> bytes:
        return issuer.jwks()

    policy = TokenPolicy("a", (ISSUER,), ("me",), (Subject(SUBJECT, Role.SHOOT_CLIENT),))
    ring = KeyRing(ISSUER, source, lambda: 0.0, refresh_s=300.0, max_age_s=3600.0)
    said: list[Command] = []
    gate = Gate(Verifier({ISSUER: ring}, policy), said.append, lambda: WALL)
    good, bad = issuer.sign(claims("me", now=WALL)), issuer.sign(claims("you", now=WALL))

    async def events() -> AsyncIterator[Event]:
        yield Presented(1, good, "192.0.2.1:5")
        yield Presented(2, bad, "192.0.2.1:6")
        yield Ready(0, 7)

    assert [event async for event in gate.pass_on(events())] == [Ready(0, 7)]
    async with asyncio.timeout(5):
        while len(said) < 2:
            await asyncio.sleep(0.001)
    answers = {command.visit: command for command in said if isinstance(command, Admit | Turn)}
    assert answers[1] == Admit(1, "spiffe://a/shoot-client/node-1", WALL + 3600)
    turn = answers[2]
    assert isinstance(turn, Turn) and (turn.status, turn.cause) == (401, "token_audience")
    assert GetStats() not in said
    everything = caplog.text + repr([*said, Presented(1, good, "peer")])
    assert not any(part in everything for token in (good, bad) for part in token.split("."))


async def test_a_one_time_token_goes_to_the_desk_and_is_refused_where_there_is_none(tmp_path: Path) -> None:
    token = made(b"t" * 32)
    shown = taken(token, bytes(16))
    line = Line(digest_of(token), Identity("a", Role.SHOOT_CLIENT, "edge-1"), WALL + 60)
    (tmp_path / "tokens").write_text(f"{line}\n")
    spent = SpentTokens(tmp_path)
    journal = Journal(logging.getLogger("test"))
    desk = Desk(tmp_path / "tokens", spent, journal, Warden(lambda: WALL), issuer="me", lasts_s=60.0)
    said: list[Command] = []

    async def events() -> AsyncIterator[Event]:
        yield Presented(1, shown, "192.0.2.1:5")

    for place, expected in ((desk, Admit), (None, Turn)):
        gate = Gate(Verifier({}), said.append, lambda: WALL, place)
        assert [event async for event in gate.pass_on(events())] == []
        async with asyncio.timeout(5):
            while not said:
                await asyncio.sleep(0.001)
        answer = said.pop()
        assert isinstance(answer, expected)
        if isinstance(answer, Admit):
            assert answer == Admit(1, str(line.identity), WALL + 60, f"one-time {digest_of(shown)}")
        elif isinstance(answer, Turn):
            assert answer.cause == "enrolment_off" and "takes no enrolment tokens" in answer.words
