"""Which tokens are good, and the refusal of all others. The attacks are those of RFC 8725 and of shoots on each other."""

import base64
import json
import math
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from joserfc.errors import SecurityWarning
from joserfc.jwk import RSAKey

from agent.errors import BadMessage
from agent.identity import Identity, Role
from lab.tokens import ISSUER, SUBJECT, Issuer, claims
from seed_server.tokens.policy import Subject, TokenPolicy
from seed_server.tokens.verify import JWKS_MAX_BYTES, Refused, UnknownKey, parse_jwks, verify

NOW = 1_700_000_000.0
CP = "shoot--garden--a"
AUDIENCE = f"spiffe://{CP}/seed-server"
POLICY = TokenPolicy(CP, (ISSUER,), (AUDIENCE,), (Subject(SUBJECT, Role.SHOOT_CLIENT),))


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def rsa() -> Issuer:
    return Issuer("rsa-1", rsa=True)


def body(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; None takes a claim out."""
    full = claims(AUDIENCE, now=NOW) | changes
    return {name: value for name, value in full.items() if value is not None}


def refusal(issuer: Issuer, token: str, policy: TokenPolicy = POLICY) -> str:
    with pytest.raises(Refused) as refused:
        verify(token, parse_jwks(issuer.jwks()), policy, NOW)
    assert not any(part and part in str(refused.value) for part in token.split(".")), "words repeat the token"
    return refused.value.cause


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("kind", ["issuer", "rsa"])
def test_a_good_token_names_its_node(kind: str, request: pytest.FixtureRequest) -> None:
    issuer: Issuer = request.getfixturevalue(kind)
    verified = verify(issuer.sign(body()), parse_jwks(issuer.jwks()), POLICY, NOW)
    assert verified.identity == Identity(CP, Role.SHOOT_CLIENT, "node-1")
    assert (verified.issuer, verified.ends_at) == (ISSUER, NOW + 3600)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"iss": "https://evil.example"}, "token_issuer"),
        ({"iss": ISSUER + "/"}, "token_issuer"),
        ({"iss": [ISSUER]}, "token_issuer"),
        ({"iss": None}, "token_issuer"),
        ({"aud": ["spiffe://shoot--garden--b/seed-server"]}, "token_audience"),
        ({"aud": AUDIENCE + "/"}, "token_audience"),
        ({"aud": ["https://kubernetes.default.svc"]}, "token_audience"),
        ({"aud": []}, "token_audience"),
        ({"aud": None}, "token_claims"),
        ({"aud": {"spiffe": AUDIENCE}}, "token_audience"),
        ({"sub": "system:serviceaccount:default:default"}, "token_subject"),
        ({"sub": SUBJECT + "x"}, "token_subject"),
        ({"sub": [SUBJECT]}, "token_claims"),
        ({"sub": None}, "token_claims"),
        ({"exp": NOW}, "token_expired"),
        ({"exp": NOW - 1}, "token_expired"),
        ({"exp": NOW - 3600}, "token_expired"),
        ({"exp": None}, "token_claims"),
        ({"exp": "9999999999"}, "token_claims"),
        ({"exp": True}, "token_claims"),
        ({"nbf": NOW + 31}, "token_not_yet"),
        ({"iat": NOW + 31}, "token_not_yet"),
        ({"kubernetes.io": None}, "token_subject"),
        ({"kubernetes.io": {"node": {"name": "../../etc"}}}, "token_subject"),
        ({"kubernetes.io": {"node": {"name": 7}, "pod": []}}, "token_subject"),
    ],
)
def test_a_claim_that_is_wrong(issuer: Issuer, changes: dict[str, Any], cause: str) -> None:
    assert refusal(issuer, issuer.sign(body(**changes))) == cause


def test_a_number_that_is_none_never_lives_for_ever(issuer: Issuer) -> None:
    assert refusal(issuer, issuer.sign(body(exp=math.nan))) in ("token_claims", "token_signature")
    assert refusal(issuer, issuer.sign(body(exp=math.inf))) in ("token_claims", "token_signature")


def test_clocks_may_differ_a_little_at_the_beginning(issuer: Issuer) -> None:
    token = issuer.sign(body(nbf=NOW + 20, iat=NOW + 20))
    assert verify(token, parse_jwks(issuer.jwks()), POLICY, NOW)


def test_no_signature_is_no_token(issuer: Issuer) -> None:
    for algorithm in ("none", "None", "NONE", ""):
        unsigned = f"{segment({'alg': algorithm, 'kid': issuer.kid})}.{segment(body())}."
        assert refusal(issuer, unsigned) == "token_algorithm"
    assert refusal(issuer, f"{segment({'kid': issuer.kid})}.{segment(body())}.") == "token_malformed"


def test_a_public_key_is_no_shared_secret(rsa: Issuer) -> None:
    """HS256 with the text of the RSA public key as its secret: what libraries once fell for."""
    for secret in (rsa.key.as_pem(private=False), rsa.key.as_der(private=False), rsa.jwks()):
        signed = f"{segment({'alg': 'HS256', 'kid': rsa.kid})}.{segment(body())}"
        mac = hmac.HMAC(secret, hashes.SHA256())
        mac.update(signed.encode())
        assert refusal(rsa, f"{signed}.{segment(mac.finalize())}") == "token_algorithm"


def test_an_algorithm_of_another_kind_of_key(issuer: Issuer, rsa: Issuer) -> None:
    _, payload, signature = issuer.sign(body()).split(".")
    for algorithm in ("RS256", "PS256", "ES384"):
        forged = f"{segment({'alg': algorithm, 'kid': issuer.kid})}.{payload}.{signature}"
        assert refusal(issuer, forged) == "token_signature"


def test_what_is_signed_is_what_counts(issuer: Issuer) -> None:
    header, payload, signature = issuer.sign(body()).split(".")
    assert refusal(issuer, f"{header}.{segment(body(sub='other'))}.{signature}") == "token_signature"
    assert refusal(issuer, f"{header}.{payload}.{segment(bytes(64))}") == "token_signature"
    assert refusal(issuer, f"{header}.{payload}.") == "token_signature"
    assert refusal(issuer, Issuer().sign(body())) == "token_signature", "another's key under the same kid"


def test_keys_in_the_token_itself_are_not_looked_at(issuer: Issuer) -> None:
    thief = Issuer("key-1")
    for header in (
        {"jwk": thief.key.as_dict(private=False)},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://e"},
    ):
        assert refusal(issuer, thief.sign(body(), **header)) in ("token_signature", "token_malformed")


@pytest.mark.parametrize("kid", ["key-2", "", None])
def test_an_unknown_key_may_be_a_new_one(issuer: Issuer, kid: str | None) -> None:
    with pytest.raises(UnknownKey):
        verify(issuer.sign(body(), kid=kid), parse_jwks(issuer.jwks()), POLICY, NOW)


@pytest.mark.parametrize(
    "token", ["", "x", "a.b", "a.b.c", "a.b.c.d", "e30.e30.e30", "eyJhbGciOiJSUzI1NiJ9.W10.AA", "." * 8]
)
def test_what_is_no_token(issuer: Issuer, token: str) -> None:
    with pytest.raises(Refused):
        verify(token, parse_jwks(issuer.jwks()), POLICY, NOW)


def test_an_oversized_token_is_not_read(issuer: Issuer) -> None:
    header = segment({"alg": "ES256", "kid": "x" * 600})
    assert refusal(issuer, f"{header}.{segment(body())}.{segment(bytes(64))}") == "token_malformed"
    assert refusal(issuer, issuer.sign(body(junk="x" * 130_000))) == "token_malformed"


def test_a_critical_header_that_nobody_knows(issuer: Issuer) -> None:
    header = {"alg": "ES256", "kid": issuer.kid, "crit": ["rhizome"], "rhizome": True}
    assert refusal(issuer, f"{segment(header)}.{segment(body())}.{segment(bytes(64))}") in (
        "token_signature",
        "token_malformed",
    )


def test_a_key_set(issuer: Issuer, rsa: Issuer) -> None:
    assert set(parse_jwks(issuer.jwks(rsa))) == {"key-1", "rsa-1"}
    secret = {"kty": "oct", "kid": "secret", "k": segment(bytes(32))}
    for_encryption = issuer.key.as_dict(private=False) | {"use": "enc", "kid": "enc"}
    nameless = {key: value for key, value in issuer.key.as_dict(private=False).items() if key != "kid"}
    rows = [issuer.key.as_dict(private=False), secret, for_encryption, nameless, {"kty": "new"}, 7]
    assert set(parse_jwks(json.dumps({"keys": rows}).encode())) == {"key-1"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{"kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"}]}',
        b'{"keys": [' + b",".join([b"{}"] * 65) + b"]}",
        b"[" * 100_000,
        b" " * (JWKS_MAX_BYTES + 1),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_no_key_set(text: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_jwks(text)


def test_a_key_that_is_too_short_is_left_out(issuer: Issuer) -> None:
    with pytest.warns(SecurityWarning):
        short = RSAKey.generate_key(1024, {"kid": "short"})
    rows = [issuer.key.as_dict(private=False), short.as_dict(private=False)]
    assert set(parse_jwks(json.dumps({"keys": rows}).encode())) == {"key-1"}


def test_two_keys_of_one_name_are_an_attack_or_a_mistake(issuer: Issuer) -> None:
    with pytest.raises(BadMessage, match="two keys with one kid"):
        parse_jwks(issuer.jwks(Issuer(issuer.kid)))
