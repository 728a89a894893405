"""How full a pool is, and what is known of one address: answers for people and metrics, read from a ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from agent.model import IPAddress
from ipam.ledger import Ledger
from ipam.model import UNCONFIRMED, Allocation, Block, Pool


@dataclass(frozen=True, slots=True)
class Usage:
    """Blocks of one pool. `size` is their sum: reserved ones are not counted.

    `used` are held, `quarantined` were given back and rest, `orphaned` are kept because a block of another length overlaps
    them: one that was given before the pool was what it is now, or by another pool.
    """

    size: int
    used: int
    quarantined: int
    orphaned: int

    @property
    def free(self) -> int:
        return self.size - self.used - self.quarantined - self.orphaned

    @property
    def taken(self) -> float:
        """How much of the pool cannot be given now, from 0 to 1."""
        return 1.0 - self.free / self.size

    def __str__(self) -> str:
        kinds = [("in use", self.used), ("in quarantine", self.quarantined), ("kept for former pools", self.orphaned)]
        return ", ".join(f"{count} {words}" for words, count in kinds if count or words == "in use")


def usage(ledger: Ledger, pool: Pool) -> Usage:
    """Looks at every allocation."""
    used = resting = 0
    foreign: list[tuple[int, int]] = []
    for allocation in ledger:
        for block in allocation.blocks:
            if not block.overlaps(Block.of(pool.network)):
                continue
            if pool.gives(block):
                used, resting = (used, resting + 1) if allocation.resting else (used + 1, resting)
            elif block.length != pool.space[1] and not (pool.parent and block.length <= pool.network.prefixlen):
                foreign.append(_numbers(block, pool))
    return Usage(pool.size, used, resting, _count_unused(ledger, pool, foreign))


def _numbers(block: Block, pool: Pool) -> tuple[int, int]:
    """The block numbers of the pool that overlap `block`, half-open."""
    shift = pool.space[1] - block.length
    return (block.number << shift, block.number + 1 << shift) if shift > 0 else (n := block.number >> -shift, n + 1)


def _count_unused(ledger: Ledger, pool: Pool, intervals: Iterable[tuple[int, int]]) -> int:
    """How many of the pool's blocks lie in the intervals and are not used themselves."""
    version, length = pool.space
    count, done = 0, 0
    for low, high in sorted(intervals):
        for start, end in pool.ranges:
            first, last = max(low, start, done), min(high, end)
            if first < last:
                count += last - first - ledger.used_between(version, length, first, last)
        done = max(done, high)
    return count


def orphans(ledger: Ledger, pools: Iterable[Pool]) -> list[tuple[Block, Allocation]]:
    """Blocks that no pool would give today: their pool was shrunk, removed or cut differently. They stay with their owners."""
    given = tuple(pools)
    found = (
        (block, allocation)
        for allocation in ledger
        if allocation.parent is None
        for block in allocation.blocks
        if not any(pool.gives(block) for pool in given)
    )
    return sorted(found, key=lambda pair: pair[0])


class Standing(Enum):
    """What can be said of one address."""

    FREE = "free"
    USED = "used"
    QUARANTINED = "quarantined"
    ORPHAN = "orphan"  #: held, but no pool would give it today
    RESERVED = "reserved"
    FOREIGN = "foreign"  #: in no pool


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known of one address. `allocations` are those whose blocks it lies in, the widest first."""

    address: IPAddress
    standing: Standing
    pools: tuple[Pool, ...]
    allocations: tuple[tuple[Block, Allocation], ...]


def explain(ledger: Ledger, pools: Iterable[Pool], address: IPAddress) -> Explanation:
    """Looks at every allocation."""
    version, bits = address.version, address.max_prefixlen
    found = [
        (block, allocation)
        for allocation in ledger
        for block in allocation.blocks
        if block.version == version and int(address) >> bits - block.length == block.number
    ]
    found.sort(key=lambda pair: pair[0].length)
    around = tuple(pool for pool in pools if address in pool.network)
    if found:
        block, allocation = found[-1]
        known = allocation.parent is not None or any(pool.gives(block) for pool in around)
        standing = Standing.USED if known else Standing.ORPHAN
        if allocation.resting:
            standing = Standing.QUARANTINED
    elif any(pool.gives(Block(version, pool.space[1], int(address) >> bits - pool.space[1])) for pool in around):
        standing = Standing.FREE
    else:
        standing = Standing.RESERVED if around else Standing.FOREIGN
    return Explanation(address, standing, around, tuple(found))


def contradictions(ledger: Ledger) -> list[str]:
    """What can never be in a ledger that only this program wrote: overlapping blocks of different owners. In words.

    A block that is kept for nobody may overlap: a writer that died while it cut what rested into other pieces leaves the claims
    of both. Sorted by first address, two blocks overlap only when one begins inside the other.
    """
    entries = sorted(
        (
            (block.version, block.first, block.length, block, allocation)
            for allocation in ledger
            if allocation.owner.kind != UNCONFIRMED
            for block in allocation.blocks
        ),
        key=lambda entry: entry[:3],
    )
    problems: list[str] = []
    around: list[tuple[Block, Allocation]] = []
    for _, _, _, block, allocation in entries:
        while around and not around[-1][0].overlaps(block):
            around.pop()
        if around:
            wider, other = around[-1]
            if other.owner not in (allocation.parent, allocation.owner):
                problems.append(f"{block} of {allocation.owner} overlaps {wider} of {other.owner}")
        around.append((block, allocation))
    return problems
