"""A session from both ends: what it says, when it renews, and what ends it."""

from dataclasses import replace

import pytest

from agent.carrier.api import Close, Command, Redial, Send
from agent.messages import Drain, Enroll, Facts, Grant, Offer, Refuse, encode, parse
from agent.model import PublicKey, networks
from agent.session import ANSWER_TIMEOUT_S, ENROLLS_MAX, REFUSED_RETRY_S, RENEW_MIN_S, SETTLED_S, Session, State

MINE = (("stream", PublicKey(b"m" * 32)),)
SERVER = (("stream", PublicKey(b"s" * 32)),)
GRANT = Grant(1, "e1", SERVER, (), (), (), (), (), 1420, 20, lifetime_s=100.0)


def session() -> Session:
    return Session(MINE, Offer(networks(["10.250.0.2/32"])))


def said(commands: tuple[Command, ...]) -> list[object]:
    return [parse(c.text) if isinstance(c, Send) else c for c in commands]


def joined(now: float = 0.0, grant: Grant = GRANT) -> Session:
    s = session()
    s.on_up(1, (), now)
    s.on_message(1, encode(grant), now)
    return s


def test_it_enrols_as_soon_as_there_is_a_stream() -> None:
    s = session()
    assert (s.state, s.next_wakeup()) == (State.DOWN, None)
    assert said(s.on_up(7, (), 0.0)) == [Enroll(MINE, s.offer)]
    assert s.state is State.ENROLLING and s.grant is None


def test_a_grant_joins_and_is_renewed_at_half_of_its_life() -> None:
    s = joined(10.0)
    assert s.state is State.JOINED and s.grant == GRANT
    assert s.next_wakeup() == 60.0
    assert s.tick(59.9) == ()
    assert said(s.tick(60.0)) == [Enroll(MINE, s.offer)]
    s.on_message(1, encode(GRANT), 60.1)
    assert s.expires_in_s(60.1) == 100.0


def test_an_unanswered_enroll_is_repeated_and_then_the_stream_is_given_up() -> None:
    s = session()
    s.on_up(1, (), 0.0)
    now = 0.0
    for _ in range(ENROLLS_MAX - 1):
        now += ANSWER_TIMEOUT_S
        assert s.next_wakeup() == now
        assert len(said(s.tick(now))) == 1
    assert isinstance(s.tick(now + ANSWER_TIMEOUT_S)[0], Close)


def test_a_grant_survives_its_stream_and_ends_with_its_lifetime() -> None:
    s = joined()
    s.on_down(1)
    assert (s.state, s.grant) == (State.DOWN, GRANT)
    assert s.next_wakeup() == 100.0
    s.tick(100.0)
    assert s.grant is None and s.next_wakeup() is None
    assert s.ended == GRANT


def test_another_stream_replaces_the_one_before_and_the_old_ones_end_is_nothing() -> None:
    s = joined()
    s.on_up(2, (), 1.0)
    s.on_down(1)
    assert s.stream == 2
    assert s.on_message(1, encode(Refuse("x", "y")), 1.0) == () and s.grant == GRANT


def test_an_adopted_carriers_grant_is_used_at_once_and_asked_for_again() -> None:
    s = session()
    commands = s.on_up(3, ("not json", encode(GRANT)), 0.0)
    assert s.grant == GRANT and not s.kicks
    assert said(commands) == [Enroll(MINE, s.offer)]


def test_a_new_epoch_with_the_old_key_is_a_kick() -> None:
    s = joined()
    s.on_message(1, encode(GRANT), 1.0)
    assert not s.kicks
    s.on_message(1, encode(replace(GRANT, epoch="e2")), 2.0)
    assert s.kicks == {"stream": 1}
    s.on_message(1, encode(replace(GRANT, epoch="e3", public_keys=(("stream", PublicKey(b"t" * 32)),))), 3.0)
    assert s.kicks == {"stream": 1}, "a new key is a new peer: the plan replaces it anyway"


@pytest.mark.parametrize(("later", "retry_in_s"), [(None, REFUSED_RETRY_S), (3.0, 3.0)])
def test_a_refusal_ends_the_grant_and_says_when_to_come_back(later: float | None, retry_in_s: float) -> None:
    s = joined()
    (close,) = s.on_message(1, encode(Refuse("role", "observers may not enrol", later)), 1.0)
    assert close == Close(1, "refused: role", retry_in_s)
    assert (s.state, s.grant, s.refusal) == (State.REFUSED, None, Refuse("role", "observers may not enrol", later))
    assert s.ended == GRANT
    s.on_down(1)
    assert (s.state, s.grant) == (State.REFUSED, None), "the reason stays visible while there is no stream"
    s.on_up(2, (), 9.0)
    s.on_message(2, encode(GRANT), 9.0)
    assert (s.state, s.refusal) == (State.JOINED, None)


def test_a_message_that_breaks_the_rules_costs_the_stream() -> None:
    (close,) = joined().on_message(1, '{"type": 1}', 1.0)
    assert isinstance(close, Close) and "type" in close.reason


def test_drain_means_move_now() -> None:
    assert joined().on_message(1, encode(Drain("upgrade")), 1.0) == (Redial(),)


def test_facts_are_told_when_they_change() -> None:
    s = joined()
    assert s.set_offer(s.offer) == ()
    more = Offer(networks(["10.250.0.2/32", "10.250.0.3/32"]))
    assert said(s.set_offer(more)) == [Facts(more)]
    s.on_down(1)
    assert s.set_offer(Offer()) == ()
    assert said(s.on_up(2, (), 5.0)) == [Enroll(MINE, Offer())]


def test_a_new_key_enrols_again() -> None:
    s = joined()
    assert s.set_public_keys(MINE, 1.0) == ()
    other = (("stream", PublicKey(b"n" * 32)),)
    assert said(s.set_public_keys(other, 1.0)) == [Enroll(other, s.offer)]


def test_a_grant_that_cannot_be_renewed_is_worried_about() -> None:
    s = joined()
    assert s.unrenewed_s(50.0) is None
    assert s.unrenewed_s(50.0 + ANSWER_TIMEOUT_S) is None
    assert s.unrenewed_s(51.0 + ANSWER_TIMEOUT_S) == 49.0 - ANSWER_TIMEOUT_S
    s.on_message(1, encode(GRANT), 60.0)
    assert s.unrenewed_s(60.0) is None
    s.tick(160.0)
    assert s.unrenewed_s(160.0) is None


def test_a_grant_that_ends_with_our_credential_is_renewed_at_a_bounded_rate_and_worried_about() -> None:
    s = joined()
    s.on_message(1, encode(replace(GRANT, lifetime_s=14.0)), 1.0)
    assert s.unrenewed_s(2.0) is None, "a newer credential may just be on its way"
    s.on_message(1, encode(replace(GRANT, lifetime_s=7.0)), 8.0)
    assert s.unrenewed_s(8.0) == 7.0 and SETTLED_S < 7.0, "short since 1.0, however often it is renewed"
    s.on_message(1, encode(replace(GRANT, lifetime_s=0.5)), 20.0)
    assert s.tick(20.3) == () and s.next_wakeup() == 20.5 < 20.0 + RENEW_MIN_S
    s.on_message(1, encode(GRANT), 20.4)
    assert s.unrenewed_s(25.0) is None
