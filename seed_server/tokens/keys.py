"""An issuer's keys, kept for a while: read again now and then, and when a token names a key that is not among them.

asked for -> older than `refresh_s`, or unknown kid: read again, at most every RETRY_S
          -> cannot be read: the last ones stay good until they are `max_age_s` old, then every token is refused
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from joserfc.jwk import Key

from agent.errors import BadMessage, HostError
from seed_server.tokens.policy import Policy
from seed_server.tokens.verify import JWKS_MAX_BYTES, Refused, UnknownKey, Verified, issuer_of, parse_jwks, verify

log = logging.getLogger("rhizome.seed.tokens")

#: Tokens with made-up key names must not turn this server into a load on the issuer.
RETRY_S = 10.0
#: How long a key that the issuer has withdrawn may still be used.
REFRESH_S = 300.0
FILE_REFRESH_S = 5.0

#: The text of a key set. Raises HostError or BadMessage, in words.
Source = Callable[[], Awaitable[bytes]]


class KeyRing:
    """The keys of one issuer. Times are monotonic."""

    def __init__(
        self, issuer: str, source: Source, clock: Callable[[], float], *, refresh_s: float, max_age_s: float
    ) -> None:
        self._issuer = issuer
        self._source = source
        self._clock = clock
        self._refresh_s = refresh_s
        self._max_age_s = max_age_s
        self._keys: Mapping[str, Key] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._reading = asyncio.Lock()

    async def keys(self, *, missed: bool = False) -> Mapping[str, Key]:
        """`missed`: what is known was not enough. Raises Refused when there are none that are young enough."""
        async with self._reading:  # many that wait for the same keys ask for them once
            now = self._clock()
            stale = missed or self._read_at is None or now - self._read_at >= self._refresh_s
            if stale and (self._tried_at is None or now - self._tried_at >= min(RETRY_S, self._refresh_s)):
                self._tried_at = now
                await self._read()
        if self._read_at is None or self._clock() - self._read_at > self._max_age_s:
            words = "this server cannot read its issuer's keys: try again later"
            raise Refused("token_keys", words, status=503)
        return self._keys

    async def _read(self) -> None:
        try:
            keys = parse_jwks(await self._source())
        except (HostError, BadMessage) as exc:
            log.warning("cannot read the keys of %s: %s", self._issuer, exc, extra={"event": "keys.unreadable"})
            return
        self._read_at = self._clock()
        if keys.keys() != self._keys.keys():
            log.info("%s has %d keys", self._issuer, len(keys), extra={"event": "keys.read"})
        self._keys = keys


class Verifier:
    """Judges tokens of the policies' issuers. There is a ring for each of them; an issuer has one policy."""

    def __init__(self, rings: Mapping[str, KeyRing], *policies: Policy) -> None:
        self._rings = rings
        self._policies = {issuer: policy for policy in policies for issuer in policy.issuers}

    async def verify(self, token: str, wall: float) -> Verified:
        """Raises Refused. A key that is not known is asked for once more, as far as the issuer may be asked."""
        issuer = issuer_of(token, self._policies)
        ring, policy = self._rings[issuer], self._policies[issuer]
        try:
            return verify(token, await ring.keys(), policy, wall)
        except UnknownKey:
            return verify(token, await ring.keys(missed=True), policy, wall)


def file_source(path: Path) -> Source:
    """A key set in a file."""

    async def read() -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(JWKS_MAX_BYTES + 1)
        except OSError as exc:
            raise HostError(f"cannot read {path}: {exc.strerror}", exc.errno or 0) from exc

    return read
