"""Who carries what just now: the registry's claims, each client's pulse and the assignment of shared parts, joined. Pure.

Kept up to date change by change, because with thousands of clients nothing may be worked out anew for each of them. What a
client carries alone stays with it, whether it is well or not: nobody else has it. Only when its stream has gone, and another
client that is well offers to reach its addresses, they fall to that one: the node is then a node without a client.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agent.model import IPAddress, IPNetwork
from agent.pulse import INTERVAL_S, RELIED_ON_INTERVAL_S, Cause, Pulse, Standing, standby_interval_s
from seed_server.assignment import Assignment, Move
from seed_server.registry import Client

#: Clients that were lost within so long of each other were lost to one cause.
COMMON_S = 5.0


@dataclass(slots=True)
class Tally:
    """Since this process started. `failovers`: clients that were lost while they carried shared parts, by cause; `moves`:
    parts that went from one client to another."""

    failovers: Counter[str] = field(default_factory=Counter)
    moves: int = 0


class Carrying:
    """What each client carries, by identity text, and why. `version` grows with every change of `carries`."""

    def __init__(self, ranges: Iterable[IPNetwork]) -> None:
        self.pulses: dict[str, Pulse] = {}
        self.tally = Tally()
        self.version = 0
        self._assignment = Assignment(ranges)
        self._clients: dict[str, Client] = {}
        self._carries: dict[str, tuple[IPNetwork, ...]] = {}
        self._away: set[str] = set()  # lost with their streams
        self._well = 0
        self._blackout_at = -math.inf
        self._standby_s = INTERVAL_S

    @property
    def carries(self) -> Mapping[str, tuple[IPNetwork, ...]]:
        """Identity text -> the prefixes that this client carries now, its tunnel addresses not included. A client's own come
        first. One owner per prefix."""
        return MappingProxyType(self._carries)

    def owner_of(self, address: IPAddress) -> str | None:
        """Who carries the shared part with this address, as far as no node carries it alone."""
        part = self._assignment.part_of(address)
        return self._assignment.owners[part] if part is not None else None

    def reserve(self, holder: str, prefixes: Iterable[IPNetwork]) -> None:
        """Shared parts in these prefixes are given to nobody until `release`: a peer that was found at start has them."""
        self._assignment.reserve(holder, prefixes)

    def release(self, holder: str) -> None:
        """It has come back as a client, or will not."""
        self._note(self._assignment.release(holder))

    def put(self, client: Client, now: float, *, trusted: bool = False) -> Pulse:
        """A client is in, or something about it has changed. `trusted`: it was in before this server started, and is taken
        at its word until its canary says otherwise. Returns its pulse, the same one for as long as it is in."""
        key = str(client.identity)
        pulse = self.pulses.get(key)
        if pulse is None:
            pulse = self.pulses[key] = Pulse(now, Standing.WELL if trusted else Standing.UNPROVEN)
            self._well += trusted
        pulse.stream(None if client.stream is not None else client.stream_lost_at)
        self._clients[key] = client
        moves = self._assignment.put(key, client.shared, pulse.standing)
        self._update(key)
        self._note(moves)
        return pulse

    def drop(self, key: str) -> None:
        """The client is out."""
        pulse = self.pulses.pop(key, None)
        if pulse is None:
            return
        self._count(pulse.standing, None, pulse.since)
        self._away.discard(key)
        del self._clients[key]
        del self._carries[key]
        self.version += 1
        self._note(self._assignment.drop(key))

    def judge_all(self, now: float, *, stalled: bool = False) -> list[str]:
        """Look at what time has brought; those who stand otherwise now. `stalled` as for a pulse."""
        if (standby_s := standby_interval_s(len(self.pulses))) != self._standby_s:
            self._standby_s = standby_s
            for key, pulse in self.pulses.items():
                pulse.interval_s = RELIED_ON_INTERVAL_S if self._assignment.holds(key) else standby_s
        return [key for key, pulse in self.pulses.items() if pulse.is_restless and self.judge(key, now, stalled)]

    def judge(self, key: str, now: float, stalled: bool = False) -> bool:
        """Look at what time has brought to one client; True when it stands otherwise now."""
        pulse = self.pulses[key]
        before, lost_at = pulse.standing, pulse.since
        # All were lost at one time, so it was not this client's fault.
        common = before is Standing.LOST and abs(lost_at - self._blackout_at) <= COMMON_S
        if not pulse.judge(now, patient=self._well > 0 and not common, stalled=stalled):
            return False
        self._count(before, pulse.standing, now)
        moves = self._assignment.put(key, self._clients[key].shared, pulse.standing)
        if pulse.standing is Standing.LOST and moves:
            self.tally.failovers[pulse.cause.value] += 1
        (self._away.add if pulse.standing is Standing.LOST and pulse.cause is Cause.STREAM else self._away.discard)(key)
        self._update(key)
        self._note(moves)
        return True

    def _count(self, before: Standing, after: Standing | None, now: float) -> None:
        self._well += (after is Standing.WELL) - (before is Standing.WELL)
        if before is Standing.WELL and not self._well:
            self._blackout_at = now

    def _note(self, moves: list[Move]) -> None:
        self.tally.moves += sum(move.before is not None and move.after is not None for move in moves)
        for name in {name for move in moves for name in (move.before, move.after)} | self._away:
            if name in self._clients:
                self._update(name)

    def _update(self, key: str) -> None:
        client = self._clients[key]
        own = tuple(p for p in client.own if not self._falls(p, key)) if key in self._away else client.own
        held = self._assignment.held(key)
        self.pulses[key].interval_s = RELIED_ON_INTERVAL_S if held else self._standby_s
        carries = own + held
        if self._carries.get(key) != carries:
            self._carries[key] = carries
            self.version += 1

    def _falls(self, prefix: IPNetwork, key: str) -> bool:
        """Whether somebody else who is well carries the part around this prefix of a client that is away."""
        part = self._assignment.part_of(prefix.network_address)
        if part is None or part.prefixlen > prefix.prefixlen:
            return False
        owner = self._assignment.owners[part]
        return owner != key and self.pulses[owner].standing is Standing.WELL
