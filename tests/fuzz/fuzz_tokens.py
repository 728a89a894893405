"""Any token and any key set -> an identity that was signed for, or Refused or BadMessage; never another exception, never a hang.

A token that is let in has the very signature that the issuer made, and no refusal repeats a part of a token.

python -m tests.fuzz.fuzz_tokens --seconds 60 [--seed N]: prints how many inputs it tried; exits 1 with the input on a finding.
"""

from __future__ import annotations

import base64
import json
import random
import sys
from typing import Any

from agent.errors import BadMessage
from agent.identity import Role
from lab.tokens import ISSUER, SUBJECT, Issuer, claims
from seed_server.tokens.policy import Subject, TokenPolicy
from seed_server.tokens.verify import Refused, parse_jwks, verify
from tests.fuzz.driver import drive_targets

NOW = 1_700_000_000.0
AUDIENCE = "spiffe://a/seed-server"
POLICY = TokenPolicy("a", (ISSUER,), (AUDIENCE,), (Subject(SUBJECT, Role.SHOOT_CLIENT),))
SIGNER, OTHER = Issuer(), Issuer("key-2", rsa=True)
GOOD = SIGNER.sign(claims(AUDIENCE, now=NOW))
KEYS = parse_jwks(SIGNER.jwks(OTHER))
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**64,
    1e308,
    "",
    "x" * 300,
    [],
    {},
    [[]],
    "none",
    "HS256",
    "RS256",
    ISSUER,
    AUDIENCE,
]


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def bend(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, or JSON with odd values in it."""
    if rng.random() < 0.4:
        return _odd(rng, data)
    text = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0 if at < len(text):
                text[at] = rng.randrange(256)
            case 1:
                text[at:at] = bytes(rng.choices(b'.=-_AeyJ{}[]"\0\xff', k=rng.randrange(1, 9)))
            case 2:
                del text[at : at + rng.randrange(1, 40)]
            case _:
                text += text[: rng.randrange(len(text) + 1)]
    return bytes(text)


def _odd(rng: random.Random, data: bytes) -> bytes:
    if data.startswith(b"{"):
        body = json.loads(data)
        row = rng.choice(body["keys"])
        row[rng.choice([*row, "kid", "kty", "use", "alg", "x5c"])] = rng.choice(ODD)
        return json.dumps(body).encode()
    header = {
        "alg": "ES256",
        "kid": SIGNER.kid,
        rng.choice(("alg", "kid", "crit", "jwk", "b64", "typ")): rng.choice(ODD),
    }
    body = claims(AUDIENCE, now=NOW)
    body[rng.choice([*body, "kubernetes.io"])] = rng.choice(ODD)
    if rng.random() < 0.5:  # well signed, so the claims are looked at
        try:
            return SIGNER.sign(body).encode()
        except Exception:  # what the library would not sign
            return data
    return f"{segment(header)}.{segment(body)}.{GOOD.split('.')[2]}".encode()


def check_token(_: random.Random, data: bytes) -> str:
    token = data.decode("latin-1")
    try:
        verified = verify(token, KEYS, POLICY, NOW)
    except Refused as exc:
        words = str(exc)
        if any(len(part) > 12 and part in words for part in token.split(".")):
            raise AssertionError("a token in a refusal") from exc
        return exc.cause
    assert (verified.identity.control_plane, verified.identity.role) == ("a", Role.SHOOT_CLIENT)
    assert verified.ends_at > NOW
    return "let in"


def check_keys(_: random.Random, data: bytes) -> str:
    try:
        keys = parse_jwks(data)
    except BadMessage:
        return "no key set"
    assert keys and all(kid for kid in keys)
    return "a key set"


if __name__ == "__main__":
    targets = (
        (check_token, (GOOD.encode(), OTHER.sign(claims(AUDIENCE, now=NOW)).encode())),
        (check_keys, (SIGNER.jwks(OTHER),)),
    )
    sys.exit(drive_targets(__doc__, targets, bend))
