"""Where a one-time token is exchanged: once, for one machine, and never again.

its line in the file -> nobody has used it yet: marked as used by this machine, on the disk, before anybody is let in
                     -> used by this machine a moment ago: let in again, as the answer may have been lost
                     -> used by another one, or long ago: refused, audited, counted
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from agent.enrolment import Line, clock, digest_of, find, parse, token_id
from agent.errors import ConfigError, StoreError
from agent.files import Stamp, stamp
from agent.onetime import parts
from seed_server.audit import Journal
from seed_server.tokens.policy import ONE_TIME, ticket
from seed_server.tokens.spent import Mark, SpentTokens
from seed_server.tokens.verify import Refused, Verified
from seed_server.warden import Warden

log = logging.getLogger("rhizome.seed.tokens")

#: For so long the machine that has used a token may show it again: its daemon or ours may have died in between.
AGAIN_S = 600.0


class Desk:
    """`warden` knows who is denied, and counts the tokens that two machines have shown; `lasts_s` is how long a stream may be up
    that was opened with one."""

    def __init__(
        self, file: Path, spent: SpentTokens, journal: Journal, warden: Warden, *, issuer: str, lasts_s: float
    ) -> None:
        """Raises ConfigError for a file that cannot be read."""
        self._file = file
        self._spent = spent
        self._journal = journal
        self._warden = warden
        self._issuer = issuer
        self._lasts_s = lasts_s
        self._stamp: Stamp | None = stamp(file)
        self._lines = read(file)
        self._contested: set[str] = set()

    async def exchange(self, shown: str, peer: str, wall: float) -> Verified:
        """Spend a token. `wall` is the time of day. Raises Refused."""
        known = parts(shown)
        if known is None:
            raise _refused(
                "malformed", "it is not written as enrolment tokens are: is this client of the server's version?"
            )
        token, holder = known
        line = find(await self._current(), token)
        if line is None:
            self._note("unknown", token_id(digest_of(token)), peer)
            raise _refused("unknown", "this server has no such token: it was taken back, or is another server's")
        if refuse := self._warden.at_the_door(line.identity):
            self._note("revoked", line.id, peer, line)
            raise _refused("revoked", f"it was not used up, but {refuse.text}", 403)
        try:
            mark = await self._spend(line, digest_of(holder), peer, wall)
        except StoreError as exc:
            log.error("no token can be used: %s", exc, extra={"event": "enrolment.unwritable"})
            raise _refused(
                "unwritable", "this server cannot write down that it was used: try again later", 503
            ) from exc
        if mark.holder != digest_of(holder):
            self._warden.fence.contested += line.digest not in self._contested
            self._contested.add(line.digest)
            self._note("spent", line.id, peer, line)
            words = f"another machine has used it at {clock(mark.at)}, and a token is for one: have a new one made, and its identity revoked if that machine is none of yours"
            raise _refused("spent", words)
        if not -AGAIN_S <= wall - mark.at <= AGAIN_S:
            self._note("over", line.id, peer, line)
            raise _refused(
                "over",
                f"this machine has used it at {clock(mark.at)} and did not keep what it got: have a new one made",
            )
        return Verified(line.identity, self._issuer, wall + self._lasts_s, line.id, ticket(ONE_TIME, shown))

    async def _spend(self, line: Line, holder: str, peer: str, wall: float) -> Mark:
        """The mark that stands. Raises Refused, StoreError."""
        if (mark := await self._spent.get(line.digest)) is not None:
            return mark
        if line.expires_at <= wall:
            self._note("expired", line.id, peer, line)
            raise _refused("expired", f"it could be used until {clock(line.expires_at)}: have a new one made")
        ours = Mark(str(line.identity), holder, wall, line.expires_at)
        mark = await self._spent.put(line.digest, ours)
        if mark == ours:
            words = f"{line.identity} has enrolled with the one-time token {line.id} from {peer}"
            self._journal.note(logging.INFO, "enrolment.spent", words, line.identity, token=line.id, address=peer)
            await self._spent.forget(wall, {known.digest for known in self._lines})
        return mark

    async def _current(self) -> tuple[Line, ...]:
        """The lines as they are now. From a file that is gone or wrong nobody enrols."""
        seen = stamp(self._file)
        if seen != self._stamp:
            try:
                self._lines = await asyncio.to_thread(read, self._file)
            except ConfigError as exc:
                log.error("nobody can enrol: %s", exc, extra={"event": "enrolment.bad"})
                self._lines = ()
            self._stamp = seen
        return self._lines

    def _note(self, reason: str, token: str, peer: str, line: Line | None = None) -> None:
        whose = f" of {line.identity}" if line is not None else ""
        words = f"the one-time token {token}{whose}, shown from {peer}, is refused: {reason}"
        identity = line.identity if line is not None else None
        self._journal.note(
            logging.WARNING, "enrolment.refused", words, identity, token=token, address=peer, reason=reason
        )


def read(file: Path) -> tuple[Line, ...]:
    """Raises ConfigError."""
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"enrolment_file: {file}: {reason}") from exc


def _refused(cause: str, words: str, status: int = 401) -> Refused:
    return Refused(f"enrolment_{cause}", words, status, "your enrolment token")
