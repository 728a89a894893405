"""Which client carries what several of them could carry. Pure: kept up to date change by change, no clock.

A range that no node owns is cut into parts, always the same ones: as many as PART_BITS gives, however many clients there
are, so that a client that comes or goes changes no part. Each part goes to the client with the highest hash of (part, name)
among those that offer it (rendezvous hashing). A client that is lost moves only its own parts, one that comes takes only
those that it wins, and two servers that see the same clients agree without talking.

Only clients that are well take part. When nobody who offers a part is well, it stays where it is, as long as nobody else
stands higher: a bad owner is better than none, and a change would help nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

from agent.model import IPAddress, IPNetwork
from agent.pulse import Standing

#: 32 parts for each range: a few for each of a handful of clients, and few enough for an allowed-ips list.
PART_BITS = 5


@lru_cache(maxsize=256)
def parts(network: IPNetwork) -> tuple[IPNetwork, ...]:
    """The parts of a declared range, in order: 2**PART_BITS of them, or its single addresses when it is smaller."""
    return tuple(network.subnets(min(PART_BITS, network.max_prefixlen - network.prefixlen)))


@lru_cache(maxsize=1024)
def parts_within(network: IPNetwork, prefix: IPNetwork) -> tuple[IPNetwork, ...]:
    """Those parts of the declared `network` that lie in `prefix`; none when `prefix` is smaller than a part."""
    return tuple(part for part in parts(network) if part.subnet_of(prefix))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Move:
    """A part changed hands. `before` None: nobody had it; `after` None: nobody is left who offers it."""

    part: IPNetwork
    before: str | None
    after: str | None


class _Bidder(NamedTuple):
    offers: tuple[IPNetwork, ...]
    standing: Standing


class _Crowd:
    """Those who offer one prefix, by how they stand."""

    __slots__ = ("by_standing",)

    def __init__(self) -> None:
        self.by_standing: dict[Standing, set[str]] = {standing: set() for standing in Standing}


class Assignment:
    """Owners of the parts of `ranges`, which may be of both address families."""

    def __init__(self, ranges: Iterable[IPNetwork]) -> None:
        self._ranges = tuple(ranges)
        self._owners: dict[IPNetwork, str] = {}
        self._held: dict[str, set[IPNetwork]] = defaultdict(set)
        self._bidders: dict[str, _Bidder] = {}
        self._crowds: dict[IPNetwork, _Crowd] = defaultdict(_Crowd)
        self._reserved: dict[IPNetwork, str] = {}

    @property
    def owners(self) -> Mapping[IPNetwork, str]:
        """Part -> the one client that carries it."""
        return MappingProxyType(self._owners)

    def held(self, name: str) -> tuple[IPNetwork, ...]:
        """The parts that this client carries, in order."""
        return tuple(sorted(self._held.get(name, ()), key=lambda p: (p.version, p)))

    def holds(self, name: str) -> bool:
        """Whether this client carries any part."""
        return bool(self._held.get(name))

    def part_of(self, address: IPAddress) -> IPNetwork | None:
        """The owned part with this address, None without one; the longest prefix wins, as in WireGuard."""
        around = [_part_around(network, address) for network in self._ranges if address in network]
        owned = [part for part in around if part in self._owners]
        return max(owned, key=lambda part: part.prefixlen, default=None)

    def put(self, name: str, offers: tuple[IPNetwork, ...], standing: Standing) -> list[Move]:
        """The client offers exactly these prefixes, and stands so, from now on."""
        bidder = _Bidder(offers, standing)
        before = self._bidders.get(name)
        if before == bidder:
            return []
        self._forget(name)
        self._bidders[name] = bidder
        for prefix in offers:
            self._crowds[prefix].by_standing[standing].add(name)
        offered = tuple(self._parts_of(offers))
        given_up = set(self._held.get(name, ()))
        if before is None or standing >= before.standing:
            given_up.difference_update(offered)  # it had them against all others, and stands no worse
        moves = [move for part in given_up for move in self._give(part, self._best_bidder(part))]
        return moves + [move for part in offered if self._wins(part, name, bidder) for move in self._give(part, name)]

    def drop(self, name: str) -> list[Move]:
        """The client is gone."""
        self._forget(name)
        moves = [m for part in tuple(self._held.get(name, ())) for m in self._give(part, self._best_bidder(part))]
        self._held.pop(name, None)
        return moves

    def reserve(self, holder: str, prefixes: Iterable[IPNetwork]) -> None:
        """Parts in these prefixes are given to nobody: `holder`, who is no client yet, has them and is expected."""
        for part in self._parts_of(prefixes):
            self._reserved[part] = holder

    def release(self, holder: str) -> list[Move]:
        """What was reserved for `holder` is so no longer."""
        released = [part for part, other in self._reserved.items() if other == holder]
        for part in released:
            del self._reserved[part]
        return [move for part in released for move in self._give(part, self._best_bidder(part))]

    def _parts_of(self, prefixes: Iterable[IPNetwork]) -> Iterator[IPNetwork]:
        for prefix in prefixes:
            for network in self._ranges:
                if network.version == prefix.version and network.overlaps(prefix):
                    yield from parts_within(network, prefix)

    def _forget(self, name: str) -> None:
        bidder = self._bidders.pop(name, None)
        if bidder is None:
            return
        for prefix in bidder.offers:
            crowd = self._crowds[prefix]
            crowd.by_standing[bidder.standing].discard(name)
            if not any(crowd.by_standing.values()):
                del self._crowds[prefix]

    def _give(self, part: IPNetwork, after: str | None) -> Iterator[Move]:
        before = self._owners.get(part)
        if after == before or part in self._reserved:
            return
        if before is not None:
            self._held[before].discard(part)
        if after is None:
            del self._owners[part]
        else:
            self._owners[part] = after
            self._held[after].add(part)
        yield Move(part, before, after)

    def _wins(self, part: IPNetwork, name: str, bidder: _Bidder) -> bool:
        """Whether this client takes the part from its owner, who has held it against all others."""
        owner = self._owners.get(part)
        if owner is None or owner == name:
            return owner is None
        standing = self._bidders[owner].standing
        if bidder.standing is standing is Standing.WELL:
            return _weight(part, name) > _weight(part, owner)
        return bidder.standing > standing

    def _best_bidder(self, part: IPNetwork) -> str | None:
        """Who shall have a part, whoever has it; the one who has it, when nobody stands higher and none is well."""
        owner = self._owners.get(part)
        around = [self._crowds[prefix] for prefix in _around(part) if prefix in self._crowds]
        for standing in sorted(Standing, reverse=True):
            names = [name for crowd in around for name in crowd.by_standing[standing]]
            if owner in names and standing is not Standing.WELL:
                return owner
            if names:
                return max(names, key=lambda name: _weight(part, name))
        return None


@lru_cache(maxsize=4096)
def _around(part: IPNetwork) -> tuple[IPNetwork, ...]:
    """What may be offered that covers this part: itself and larger prefixes up to a whole range."""
    return tuple(part.supernet(bits) for bits in range(min(PART_BITS, part.prefixlen) + 1))


def _part_around(network: IPNetwork, address: IPAddress) -> IPNetwork:
    """The part of the declared `network` that has this address."""
    length = min(network.prefixlen + PART_BITS, network.max_prefixlen)
    spare = network.max_prefixlen - length
    return type(network)((int(address) >> spare << spare, length))


def _weight(part: IPNetwork, name: str) -> tuple[bytes, str]:
    return blake2b(f"{part}\0{name}".encode(), digest_size=8).digest(), name
