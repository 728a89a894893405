"""Credentials that this server signs itself, for clients that came in with a one-time token.

They are JSON Web Tokens as any other issuer's, and are verified as those are. The keys are derived (RFC 5869) from a file with a
secret in each line: the first one signs, all are believed. So every replica has the same keys, and they outlive the pod.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import ECKey

from agent.carrier.api import Up
from agent.enrolment import digest_of, token_id
from agent.errors import ConfigError
from agent.files import Stamp, stamp
from agent.identity import Identity
from agent.keys import derive
from agent.messages import Credential
from seed_server.audit import Journal
from seed_server.tokens.policy import ONE_TIME, OWN, OwnPolicy

log = logging.getLogger("rhizome.seed.tokens")

SECRET_MIN_CHARS = 32
SECRETS_MAX = 8
#: The order of P-256's group (SP 800-186 section 3.2.1.3).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Mint:
    """Signs. `wall` is the time of day. Shows nothing of its keys."""

    def __init__(self, file: Path, control_plane: str, lifetime_s: float, wall: Callable[[], float]) -> None:
        """Raises ConfigError for a file without a usable secret."""
        self.policy = OwnPolicy(control_plane)
        self.lifetime_s = lifetime_s
        self._file = file
        self._wall = wall
        self._stamp: Stamp | None = stamp(file)
        self._keys = self._read()

    async def jwks(self) -> bytes:
        """The public keys, as an issuer publishes them."""
        return json.dumps({"keys": [key.as_dict(private=False) for key in self._current()]}).encode()

    def sign(self, identity: Identity) -> str:
        """A new credential for this identity, good from now on for `lifetime_s`."""
        key, now = self._current()[0], int(self._wall())
        (issuer,), (audience,) = self.policy.issuers, self.policy.audiences
        times = {"iat": now, "nbf": now, "exp": int(now + self.lifetime_s)}
        (algorithm,) = self.policy.algorithms
        body = {"iss": issuer, "aud": audience, "sub": str(identity), **times}
        return jwt.encode({"alg": algorithm, "kid": key.kid}, body, key, algorithms=[algorithm])

    def wanes(self, ends_at: float) -> bool:
        """Whether a credential that ends then has less than half of its life left."""
        return ends_at - self._wall() < self.lifetime_s / 2

    def _current(self) -> tuple[ECKey, ...]:
        """A file that is gone or wrong changes nothing: the last good keys stay."""
        seen = stamp(self._file)
        if seen != self._stamp:
            self._stamp = seen
            try:
                self._keys = self._read()
            except ConfigError as exc:
                log.error("the last good keys stay: %s", exc, extra={"event": "enrolment.secret_bad"})
            else:
                log.info("the enrolment secret was read again: %d keys", len(self._keys), extra={"event": "keys.read"})
        return self._keys

    def _read(self) -> tuple[ECKey, ...]:
        try:
            lines = [line.strip() for line in self._file.read_text(encoding="ascii").splitlines()]
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not text"
            raise ConfigError(f"enrolment_secret: {self._file}: {reason}") from None
        secrets = list(dict.fromkeys(filter(None, lines)))
        if not secrets or len(secrets) > SECRETS_MAX or min(map(len, secrets)) < SECRET_MIN_CHARS:
            raise ConfigError(
                f"enrolment_secret: {self._file}: has to have 1 to {SECRETS_MAX} lines of at least {SECRET_MIN_CHARS} characters: make "
                "one with `wg genkey`"
            )
        return tuple(_key(secret, self.policy.control_plane) for secret in secrets)


def _key(secret: str, control_plane: str) -> ECKey:
    """The P-256 key of a secret, named by its thumbprint (RFC 7638)."""
    raw = b"".join(derive(secret.encode(), "enrolment credential", control_plane, half) for half in ("0", "1"))
    number = int.from_bytes(raw, "big") % (_ORDER - 1) + 1  # 512 bits: without a bias (FIPS 186-5, appendix A.2.1)
    pem = ec.derive_private_key(number, ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    named = ECKey.import_key(pem)
    return ECKey.import_key(pem, {"kid": named.thumbprint(), "use": "sig"})


@dataclass(frozen=True, slots=True)
class _Given:
    credential: Credential
    ticket: str


class Renewal:
    """Which grant brings a newer credential: each one on a stream that was opened with a one-time token, and on one whose
    credential has less than half of its life left. A stream gets one and the same, as whoever takes over a client hears only the last grant."""

    def __init__(self, mint: Mint, journal: Journal) -> None:
        self._mint = mint
        self._journal = journal
        self._given: dict[int, _Given] = {}

    def credential(self, identity: Identity, up: Up, streams: Collection[int]) -> Credential | None:
        """What the grant on the stream `up` brings. `streams` are those that are up."""
        kind, _, replaces = up.ticket.partition(" ")
        if kind not in (ONE_TIME, OWN):
            return None
        given = self._given.get(up.stream)
        if given is not None and given.ticket == up.ticket:
            return given.credential
        if kind == OWN and not self._mint.wanes(up.credential_ends_at or 0.0):
            return None
        for gone in self._given.keys() - set(streams):
            del self._given[gone]
        credential = Credential(self._mint.sign(identity), replaces)
        self._given[up.stream] = _Given(credential, up.ticket)
        name, lifetime_s = token_id(digest_of(credential.token)), round(self._mint.lifetime_s)
        words = f"{identity} gets the credential {name}"
        self._journal.note(logging.INFO, "credential.issued", words, identity, credential=name, lifetime_s=lifetime_s)
        return credential
