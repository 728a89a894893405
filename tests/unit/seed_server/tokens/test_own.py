"""Credentials that the server signs itself: good here, for whom they were signed and until they end, and nowhere else."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from agent.carrier.api import Up
from agent.enrolment import digest_of
from agent.errors import ConfigError
from agent.identity import Identity, Role
from lab.tokens import ISSUER, SUBJECT, Issuer, claims
from seed_server.audit import Journal
from seed_server.tokens.keys import KeyRing, Verifier
from seed_server.tokens.own import SECRETS_MAX, Mint, Renewal
from seed_server.tokens.policy import ONE_TIME, OWN, Subject, TokenPolicy, ticket
from seed_server.tokens.verify import Refused

NOW, LIFETIME_S = 1_700_000_000.0, 86400.0
NODE = Identity("a", Role.SHOOT_CLIENT, "edge-1")
SERVER = "spiffe://a/seed-server"
SECRET = "s" * 43 + "="


class Rig:
    """A server with its secret; its clock is moved by the test."""

    def __init__(self, directory: Path, control_plane: str = "a", secret: str = SECRET) -> None:
        self.file = directory / f"secret-{control_plane}"
        self.file.write_text(secret + "\n")
        self.now, self.monotonic = NOW, 1000.0
        self.mint = Mint(self.file, control_plane, LIFETIME_S, lambda: self.now)
        (issuer,) = self.mint.policy.issuers
        ring = KeyRing(issuer, self.mint.jwks, lambda: self.monotonic, refresh_s=5.0, max_age_s=3600.0)
        others = TokenPolicy(control_plane, (ISSUER,), (SERVER,), (Subject(SUBJECT, Role.SHOOT_CLIENT),))
        self.others = Issuer()
        theirs = KeyRing(ISSUER, self._jwks, lambda: self.monotonic, refresh_s=5.0, max_age_s=3600.0)
        self.verifier = Verifier({issuer: ring, ISSUER: theirs}, others, self.mint.policy)

    async def _jwks(self) -> bytes:
        return self.others.jwks()

    def key(self) -> ECKey:
        """The one that signs."""
        return self.mint._current()[0]

    def signed(self, key: ECKey | None = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """A good credential with changes; None takes a claim out."""
        key = key or self.key()
        times = {"iat": int(NOW), "nbf": int(NOW), "exp": int(NOW + LIFETIME_S)}
        body = {"iss": SERVER, "aud": SERVER, "sub": str(NODE), **times} | changes
        head = {"alg": "ES256", "kid": self.key().kid} | (header or {})
        return jwt.encode(head, {k: v for k, v in body.items() if v is not None}, key, algorithms=["ES256"])

    async def cause(self, token: str) -> str:
        """Why it is refused; empty when it is good."""
        cause, words = "", ""
        try:
            await self.verifier.verify(token, self.now)
        except Refused as exc:
            cause, words = exc.cause, str(exc)
        assert not any(part and part in words for part in token.split(".")), "words repeat the credential"
        return cause

    def rotate(self, *secrets: str) -> None:
        self.file.write_text("".join(f"{secret}\n" for secret in secrets))
        self.monotonic += 11.0


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_a_credential_says_who_it_was_signed_for_and_until_when(rig: Rig) -> None:
    token = rig.mint.sign(NODE)
    verified = await rig.verifier.verify(token, NOW)
    assert (verified.identity, verified.issuer, verified.ends_at) == (NODE, SERVER, NOW + LIFETIME_S)
    assert verified.ticket == f"own {digest_of(token)}"
    assert await rig.cause(rig.signed()) == "", "the matrix below changes a good one"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"iss": "spiffe://b/seed-server"}, "token_issuer"),
        ({"iss": SERVER + "/"}, "token_issuer"),
        ({"iss": [SERVER]}, "token_issuer"),
        ({"iss": None}, "token_issuer"),
        ({"aud": "spiffe://b/seed-server"}, "token_audience"),
        ({"aud": ["https://kubernetes.default.svc"]}, "token_audience"),
        ({"aud": []}, "token_audience"),
        ({"aud": None}, "token_claims"),
        ({"sub": None}, "token_claims"),
        ({"sub": [str(NODE)]}, "token_claims"),
        ({"sub": "edge-1"}, "token_subject"),
        ({"sub": "spiffe://b/shoot-client/edge-1"}, "token_subject"),
        ({"sub": SERVER}, "token_subject"),
        ({"sub": "spiffe://a/sidecar/edge-1"}, "token_subject"),
        ({"sub": "spiffe://a/observer/edge-1"}, "token_subject"),
        ({"exp": int(NOW)}, "token_expired"),
        ({"exp": int(NOW) - 1}, "token_expired"),
        ({"exp": None}, "token_claims"),
        ({"exp": "9999999999"}, "token_claims"),
        ({"exp": True}, "token_claims"),
        ({"nbf": int(NOW) + 31}, "token_not_yet"),
        ({"iat": int(NOW) + 31}, "token_not_yet"),
    ],
)
async def test_a_claim_that_is_wrong(rig: Rig, changes: dict[str, Any], cause: str) -> None:
    assert await rig.cause(rig.signed(**changes)) == cause


async def test_only_its_own_key_and_its_one_algorithm(rig: Rig) -> None:
    kid = rig.key().kid
    assert kid is not None
    thief = ECKey.generate_key("P-256", {"kid": kid})
    assert await rig.cause(rig.signed(thief)) == "token_signature"
    assert await rig.cause(rig.signed(header={"kid": "key-2"})) == "token_key"
    wide = ECKey.generate_key("P-384", {"kid": kid})
    forged = jwt.encode({"alg": "ES384", "kid": wide.kid}, {"iss": SERVER}, wide, algorithms=["ES384"])
    assert await rig.cause(forged) == "token_algorithm"
    head, payload, signature = rig.signed().split(".")
    assert await rig.cause(f"{head}.{payload}.{signature[:-4]}AAAA") == "token_signature"
    assert await rig.cause(f"{head}.{payload}.") == "token_signature"


async def test_an_issuer_of_others_cannot_sign_in_our_name_nor_we_in_theirs(rig: Rig) -> None:
    body = claims(SERVER, now=NOW) | {"iss": SERVER, "sub": str(NODE)}
    assert await rig.cause(rig.others.sign(body)) == "token_key"
    assert await rig.cause(rig.others.sign(body, kid=rig.key().kid)) == "token_signature"
    assert await rig.cause(rig.signed(iss=ISSUER, sub=SUBJECT)) == "token_key"
    assert await rig.cause(rig.others.sign(claims(SERVER, now=NOW))) == ""


async def test_another_control_planes_credential_is_no_good_even_with_the_same_secret(rig: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path, "b")
    assert await rig.cause(other.mint.sign(Identity("b", Role.SHOOT_CLIENT, "edge-1"))) == "token_issuer"
    assert rig.key().as_dict(private=True)["d"] != other.key().as_dict(private=True)["d"]
    assert await rig.cause(rig.signed(other.key(), {"kid": other.key().kid})) == "token_key"


async def test_it_ends_and_the_words_say_what_to_do(rig: Rig) -> None:
    token = rig.mint.sign(NODE)
    rig.now += LIFETIME_S
    with pytest.raises(Refused, match="away for longer than it lasts: have it enrolled with a new token"):
        await rig.verifier.verify(token, rig.now)


async def test_replicas_and_restarts_have_the_same_keys(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert await Rig(tmp_path / "again").cause(rig.mint.sign(NODE)) == ""


async def test_a_secret_is_rotated_without_anybody_noticing(rig: Rig) -> None:
    old = rig.mint.sign(NODE)
    assert await rig.cause(old) == ""
    rig.rotate("n" * 44, SECRET)
    new = rig.mint.sign(NODE)
    assert [await rig.cause(old), await rig.cause(new)] == ["", ""]
    rig.rotate("n" * 44)
    assert [await rig.cause(old), await rig.cause(new)] == ["token_key", ""]


async def test_a_secret_that_is_gone_or_broken_leaves_the_last_good_one(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    token = rig.mint.sign(NODE)
    rig.rotate("0123456789")
    assert await rig.cause(token) == "" and "the last good keys stay" in caplog.text and "0123456789" not in caplog.text
    rig.file.unlink()
    assert await rig.cause(rig.mint.sign(NODE)) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "0123456789",
        f"{SECRET}\n0123456789",
        "\u00e9" * 40,
        "\n".join("x" * 40 + str(n) for n in range(SECRETS_MAX + 1)),
    ],
)
def test_what_is_no_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="enrolment_secret: ") as raised:
        Rig(tmp_path, secret=text)
    assert not text.strip() or text not in str(raised.value)


async def test_what_is_published_has_no_private_part(rig: Rig) -> None:
    (row,) = json.loads(await rig.mint.jwks())["keys"]
    assert row.keys() == {"kty", "crv", "x", "y", "kid", "use"}
    assert SECRET not in repr(vars(rig.mint))


# When a newer one comes


def up(stream: int, kind: str, lasts_s: float, shown: str = "shown") -> Up:
    return Up(stream, str(NODE), "192.0.2.9:4000", "", 1, (), NOW + lasts_s, ticket(kind, shown))


@pytest.fixture
def renewal(rig: Rig) -> Renewal:
    return Renewal(rig.mint, Journal(logging.getLogger("test")))


async def test_who_comes_with_a_one_time_token_gets_a_credential_in_its_place(rig: Rig, renewal: Renewal) -> None:
    given = renewal.credential(NODE, up(1, ONE_TIME, LIFETIME_S / 2), {1})
    assert given is not None and given.replaces == digest_of("shown")
    assert (await rig.verifier.verify(given.token, NOW)).identity == NODE
    assert renewal.credential(NODE, up(1, ONE_TIME, LIFETIME_S / 2), {1}) == given, "the same one with each grant"


def test_a_credential_is_renewed_at_half_of_its_life(rig: Rig, renewal: Renewal) -> None:
    stream = up(1, OWN, LIFETIME_S)
    assert renewal.credential(NODE, stream, {1}) is None
    rig.now += LIFETIME_S / 2 + 1
    given = renewal.credential(NODE, stream, {1})
    assert given is not None and given.replaces == digest_of("shown")


def test_nobody_else_gets_one(renewal: Renewal) -> None:
    assert renewal.credential(NODE, up(1, "", 1.0), {1}) is None, "a certificate, or another's token"


def test_what_was_given_on_streams_that_are_gone_is_forgotten(
    renewal: Renewal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for stream in range(1, 9):
        given = renewal.credential(NODE, up(stream, ONE_TIME, 1.0), {stream})
        assert given is not None and given.token not in caplog.text + repr(given)
    assert len(renewal._given) == 1
