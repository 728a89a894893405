"""When an issuer is asked for its keys, and for how long they are good."""

from pathlib import Path

import pytest

from agent.errors import BadMessage, HostError
from agent.identity import Role
from lab.tokens import ISSUER, SUBJECT, Issuer, claims
from seed_server.tokens.keys import KeyRing, Verifier, file_source
from seed_server.tokens.policy import Subject, TokenPolicy
from seed_server.tokens.verify import Refused

AUDIENCE = "spiffe://a/seed-server"
POLICY = TokenPolicy("a", (ISSUER,), (AUDIENCE,), (Subject(SUBJECT, Role.SHOOT_CLIENT),))
WALL = 1_700_000_000.0


class Rig:
    """A verifier whose issuer and clock the test moves."""

    def __init__(self) -> None:
        self.issuer = Issuer()
        self.jwks = self.issuer.jwks()
        self.failure: Exception | None = None
        self.asked = 0
        self.now = 1000.0
        ring = KeyRing(ISSUER, self.source, lambda: self.now, refresh_s=300.0, max_age_s=3600.0)
        self.verifier = Verifier({ISSUER: ring}, POLICY)

    async def source(self) -> bytes:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.jwks

    async def cause(self, issuer: Issuer | None = None) -> str:
        """Why a token is refused; empty when it is good."""
        token = (issuer or self.issuer).sign(claims(AUDIENCE, now=WALL))
        try:
            await self.verifier.verify(token, WALL)
        except Refused as exc:
            return exc.cause
        return ""


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_many_tokens_are_one_question(rig: Rig) -> None:
    assert [await rig.cause() for _ in range(5)] == [""] * 5
    assert rig.asked == 1
    rig.now += 301
    assert await rig.cause() == ""
    assert rig.asked == 2


async def test_a_new_key_is_found_and_made_up_names_are_no_load_on_the_issuer(rig: Rig) -> None:
    assert await rig.cause() == ""
    new = Issuer("key-2")
    rig.jwks = rig.issuer.jwks(new)
    rig.now += 10
    assert await rig.cause(new) == ""
    assert rig.asked == 2
    assert [await rig.cause(Issuer(f"forged-{n}")) for n in range(20)] == ["token_key"] * 20
    assert rig.asked == 2, "asked a moment ago"
    rig.now += 10
    assert [await rig.cause(Issuer(f"forged-{n}")) for n in range(20)] == ["token_key"] * 20
    assert rig.asked == 3


async def test_a_withdrawn_key_ends(rig: Rig) -> None:
    assert await rig.cause() == ""
    rig.jwks = Issuer("key-2").jwks()
    rig.now += 301
    assert await rig.cause() == "token_key"


@pytest.mark.parametrize("failure", [HostError("it does not answer within 3 s"), BadMessage("it answers 302")])
async def test_an_issuer_that_is_away_is_waited_for_and_then_nobody_is_let_in(rig: Rig, failure: Exception) -> None:
    assert await rig.cause() == ""
    rig.failure = failure
    rig.now += 3599
    assert await rig.cause() == ""
    rig.now += 2
    assert await rig.cause() == "token_keys"
    rig.failure = None
    rig.now += 10
    assert await rig.cause() == ""


async def test_without_any_keys_nobody_is_let_in(rig: Rig) -> None:
    rig.failure = HostError("refused")
    assert await rig.cause() == "token_keys"
    rig.failure = None
    assert await rig.cause() == "token_keys", "asked a moment ago"
    rig.now += 10
    assert await rig.cause() == ""


async def test_two_keys_of_one_name_leave_the_last_good_set(rig: Rig) -> None:
    assert await rig.cause() == ""
    thief = Issuer(rig.issuer.kid)
    rig.jwks = rig.issuer.jwks(thief)
    rig.now += 301
    assert await rig.cause(thief) == "token_signature"
    assert await rig.cause() == ""


async def test_a_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    source = file_source(path)
    with pytest.raises(HostError, match="cannot read"):
        await source()
    path.write_bytes(b"1")
    assert await source() == b"1"
    path.write_bytes(b"2")
    assert await source() == b"2"
