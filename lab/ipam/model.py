"""What the IPAM should do, written down a second time, as simply as possible.

It knows sets of single addresses and looks for the lowest free block by trying all of them; it knows nothing of ledgers, bitmaps, logs or shards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network

from agent.model import IPNetwork
from ipam.model import Pool

Name = tuple[str, str]  # name and UID


class Full(Exception):
    """No block is free."""


class NotYours(Exception):
    """The name is held under another UID."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one owner has: block texts, when it ends, and when it was given back until when it rests."""

    blocks: tuple[str, ...]
    expires: float | None = None
    rests_until: float | None = None


@cache
def addresses(text: str) -> frozenset[str]:
    return frozenset(map(str, ip_network(text)))


@cache
def candidates(pool: Pool) -> tuple[str, ...]:
    """Every block that the pool may give, lowest first."""
    blocks = pool.network.subnets(new_prefix=pool.length or 0)
    return tuple(text_of(block) for block in blocks if not any(block.overlaps(kept) for kept in pool.reserved))


def text_of(block: IPNetwork) -> str:
    return str(block.network_address) if block.prefixlen == block.max_prefixlen else str(block)


@cache
def from_pool(text: str, pool: Pool) -> bool:
    """Whether a block has the pool's length and lies in its network."""
    block = ip_network(text)
    return (
        block.version == pool.network.version
        and block.prefixlen == pool.length
        and block.network_address in pool.network
    )


@dataclass
class Model:
    """`loose` are blocks that count as used for nobody: claims of writers that died."""

    quarantine_s: float = 360.0
    held: dict[Name, Held] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)

    def copy(self) -> Model:
        """`Held` values are never changed, only replaced."""
        return Model(self.quarantine_s, dict(self.held), set(self.loose))

    def pass_time(self, now: float) -> None:
        for name, held in list(self.held.items()):
            if held.rests_until is None and held.expires is not None and held.expires <= now:
                held = self.held[name] = Held(held.blocks, None, held.expires + self.quarantine_s)
            if held.rests_until is not None and held.rests_until <= now:
                del self.held[name]

    def taken(self) -> set[str]:
        blocks = [block for held in self.held.values() for block in held.blocks]
        return {address for block in (*blocks, *self.loose) for address in addresses(block)}

    def allocate(self, name: Name, pools: Iterable[Pool], now: float, expires: float | None) -> Held:
        """Raises Full; then nothing but time has changed anything."""
        self.pass_time(now)
        held, taken = self.held.get(name), self.taken()
        blocks = held.blocks if held is not None else ()
        for pool in pools:
            if not any(from_pool(block, pool) for block in blocks):
                free = next((block for block in candidates(pool) if not addresses(block) & taken), None)
                if free is None:
                    raise Full
                taken |= addresses(free)
                blocks += (free,)
        self.held[name] = Held(blocks, expires)
        return self.held[name]

    def release(self, name: Name, now: float) -> None:
        """Raises NotYours."""
        self.pass_time(now)
        held = self.held.get(name)
        if held is None and any(n[0] == name[0] and h.rests_until is None for n, h in self.held.items()):
            raise NotYours
        if held is not None and held.rests_until is None:
            self.held[name] = Held(held.blocks, None, now + self.quarantine_s)
