"""Is this token good here, and whose is it? The library knows JOSE; this module knows what we accept. No I/O, no clock.

What is accepted: one signature by a key of the issuer's own set, found by its `kid`, with an algorithm of the policy's, `iss`, `aud`, `exp` and `sub` present, and times that fit within LEEWAY_S.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import ClaimError, ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError
from joserfc.jwk import ECKey, Key, RSAKey, import_key

from agent.errors import BadMessage
from agent.identity import Identity
from seed_server.tokens.policy import Policy, TokenPolicy, ticket

LEEWAY_S = 30
JWKS_MAX_BYTES = 256 * 1024
KEYS_MAX = 64
_RSA_BITS_MIN = 2048

#: What is wrong with a claim: cause to count by, words for the holder.
_CLAIMS = {
    "iss": ("token_issuer", "its issuer is none that this server believes"),
    "aud": ("token_audience", "it is for another audience: a token for one server is no good at another"),
    "nbf": ("token_not_yet", "it is not valid yet (compare the clocks)"),
    "iat": ("token_not_yet", "it was issued in the future (compare the clocks)"),
}
_EXPIRED = ("token_expired", "it has expired: is the file that it is read from still renewed?")


class Refused(Exception):
    """A token that is not good. `cause` is a short fixed word, the text is for its holder and repeats nothing of it."""

    def __init__(self, cause: str, words: str, status: int = 401, what: str = "your token") -> None:
        super().__init__(f"{what} is refused: {words}")
        self.cause = cause
        self.status = status


class UnknownKey(Refused):
    """Signed with a key that is not among those known: they may be worth reading again."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(
            "token_key", policy.words.get("token_key", "it is signed with a key that its issuer does not publish")
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """`ends_at` is the token's `exp`, as time of day. `token_id` is its `jti`, empty without one; `ticket` that of its Admit."""

    identity: Identity
    issuer: str
    ends_at: float
    token_id: str
    ticket: str = ""


def parse_jwks(text: bytes) -> Mapping[str, Key]:
    """Public keys by their `kid` (RFC 7517 section 5). Keys of other kinds and without a `kid` are left out.

    Raises BadMessage for what is no key set, for a `kid` that stands there twice, and for a set without any usable key.
    """
    if len(text) > JWKS_MAX_BYTES:
        raise BadMessage(f"more than {JWKS_MAX_BYTES} bytes")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMessage("not JSON") from None
    rows = body.get("keys") if isinstance(body, dict) else None
    if not isinstance(rows, list) or len(rows) > KEYS_MAX:
        raise BadMessage(f"not a set of at most {KEYS_MAX} keys")
    named = [row for row in rows if isinstance(row, dict) and isinstance(row.get("kid"), str) and row["kid"]]
    twice = [kid for kid, count in Counter(row["kid"] for row in named).items() if count > 1]
    if twice:
        raise BadMessage("two keys with one kid: nobody could say which one signed")
    keys = {row["kid"]: key for row in named if (key := _public_key(row)) is not None}
    if not keys:
        raise BadMessage("no public key with a kid that could be used")
    return keys


def _public_key(row: Mapping[str, Any]) -> Key | None:
    if row.get("use", "sig") != "sig":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are too short, which are left out below
            key = import_key(dict(row))
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAKey):
        return key if key.raw_value.key_size >= _RSA_BITS_MIN else None
    return key if isinstance(key, ECKey) else None


def issuer_of(token: str, policies: Mapping[str, Policy]) -> str:
    """Whose keys have to be asked for, which proves nothing yet. `policies` are by issuer. Raises Refused."""
    try:
        extracted = jws.extract_compact(token.encode("ascii"))
        claims = json.loads(extracted.payload)
        header = extracted.headers()
    except (JoseError, ValueError, RecursionError):
        raise Refused("token_malformed", "it is not a signed JSON Web Token") from None
    if header.get("alg") not in TokenPolicy.algorithms:
        raise _algorithm()
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    if not isinstance(issuer, str) or issuer not in policies:
        raise Refused(*_CLAIMS["iss"])
    if header["alg"] not in policies[issuer].algorithms:
        raise _algorithm()
    return issuer


def _algorithm() -> Refused:
    return Refused("token_algorithm", "it is not signed with a public-key algorithm that is accepted here")


def verify(token: str, keys: Mapping[str, Key], policy: Policy, now: float) -> Verified:
    """`now` is the time of day. Raises Refused, or UnknownKey when other keys may help."""
    issuer = issuer_of(token, dict.fromkeys(policy.issuers, policy))

    def find(signature: Any) -> Key:
        kid = signature.headers().get("kid")
        if not isinstance(kid, str) or kid not in keys:
            raise UnknownKey(policy)
        return keys[kid]

    try:
        claims = jwt.decode(token, find, algorithms=list(policy.algorithms)).claims
        jwt.JWTClaimsRegistry(
            now=int(now),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "values": list(policy.audiences)},
            sub={"essential": True},
            exp={"essential": True},
        ).validate(claims)
    except ClaimError as exc:
        raise _wrong_claim(exc, policy) from None
    except (JoseError, ValueError, TypeError):
        # The library's words may repeat what stands in the token.
        raise _refused("token_signature", "its signature does not verify", policy) from None
    if claims["exp"] <= now:
        raise _refused(*_EXPIRED, policy)  # the leeway is for what has not begun yet: nothing outlives its end
    try:
        identity = policy.holder(claims)
    except ValueError as exc:
        raise Refused("token_subject", str(exc), status=403) from None
    token_id = str(claims.get("jti", ""))[:128]
    return Verified(identity, issuer, float(claims["exp"]), token_id, ticket(policy.kind, token))


def _refused(cause: str, words: str, policy: Policy) -> Refused:
    return Refused(cause, policy.words.get(cause, words))


def _wrong_claim(exc: ClaimError, policy: Policy) -> Refused:
    if isinstance(exc, ExpiredTokenError):
        return _refused(*_EXPIRED, policy)
    if isinstance(exc, MissingClaimError):
        return Refused("token_claims", "it lacks one of iss, aud, sub and exp")
    claim = exc.claim if isinstance(exc, InvalidClaimError) else ""
    return Refused(*_CLAIMS.get(claim, ("token_claims", "a claim in it is not of its kind")))
