"""Who carries which prefix alone: disjoint intervals, found by bisection. Immutable.

With 5,000 nodes that each hold a few prefixes, admission must not compare every prefix with every other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from agent.identity import Identity
from agent.model import IPNetwork
from ipam.persistent import Map

_Key = tuple[int, int, int]  # version, last address, first address: sorted by where an interval ends


@dataclass(frozen=True, slots=True)
class Claims:
    """`keys` is sorted; `claims[i]` is the prefix and its holder at `keys[i]`; `held` has each holder's prefixes."""

    keys: tuple[_Key, ...] = ()
    claims: tuple[tuple[IPNetwork, Identity], ...] = ()
    held: Map[Identity, tuple[IPNetwork, ...]] = field(default_factory=Map)

    def overlap(self, prefix: IPNetwork, holder: Identity) -> tuple[IPNetwork, Identity] | None:
        """A claim of somebody other than `holder` that shares an address with `prefix`, None if there is none."""
        _, last, first = _key(prefix)
        index = bisect_left(self.keys, (prefix.version, first, 0))
        while index < len(self.keys):
            version, _, start = self.keys[index]
            if version != prefix.version or start > last:
                return None
            if self.claims[index][1] != holder:
                return self.claims[index]
            index += 1
        return None

    def replace(self, holder: Identity, prefixes: Iterable[IPNetwork]) -> Claims:
        """`holder` claims exactly these now. They must not overlap anybody else's (ask `overlap` first)."""
        prefixes = tuple(prefixes)
        whole: list[IPNetwork] = [*collapse_addresses(p for p in prefixes if isinstance(p, IPv4Network))]
        whole += collapse_addresses(p for p in prefixes if isinstance(p, IPv6Network))
        keys, claims = list(self.keys), list(self.claims)
        for prefix in self.held.get(holder) or ():
            index = bisect_left(keys, _key(prefix))
            del keys[index], claims[index]
        for prefix in whole:
            key = _key(prefix)
            index = bisect_left(keys, key)
            keys.insert(index, key)
            claims.insert(index, (prefix, holder))
        held = self.held.set(holder, tuple(whole)) if whole else self.held.discard(holder)
        return Claims(tuple(keys), tuple(claims), held)


def _key(prefix: IPNetwork) -> _Key:
    return prefix.version, int(prefix.broadcast_address), int(prefix.network_address)
