"""The ledger: all allocations as one immutable value, and the search for a free block.

What is used is kept in bitmaps, a page of 2**14 blocks each, per IP version and block length. A block is free when no block
of any length that overlaps it is used: its own bitmap says so for its own length, and the others cast a shadow on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ipam.model import Allocation, Block, InconsistentLedger, Owner, Pool
from ipam.persistent import Heap, Map

#: Blocks per page of the bitmap of used blocks. A page is an int of 2 KiB when full, and exists only when something is used.
_PAGE_BITS = 14
_PAGE = 1 << _PAGE_BITS

_Page = tuple[int, int, int]  # version, length, number of the page
_Deadline = tuple[float, int, Owner]  # when, and the generation of the allocation it belongs to


Spaces = Mapping[tuple[int, int], frozenset[int]]
_Given = tuple[float, int, int]  # since when, generation, block number


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """All allocations, as a value: every change makes a new ledger that shares what did not change with the old one.

    `generation` grows with every change. `owners` is the truth; `used` (bitmaps of blocks held or resting), `spaces` (which
    pages those are, by IP version and length), `last_given` (in each page) and `deadlines` follow from it.
    """

    generation: int = 0
    owners: Map[Owner, Allocation] = field(default_factory=Map)
    used: Map[_Page, int] = field(default_factory=Map)
    spaces: Spaces = field(default_factory=dict)
    last_given: Map[_Page, _Given] = field(default_factory=Map)
    deadlines: Heap[_Deadline] = field(default_factory=Heap)

    @classmethod
    def of(cls, allocations: Iterable[Allocation], generation: int) -> Ledger:
        """A ledger from its entries. Raises InconsistentLedger when a block or an owner occurs twice."""
        owners = {}
        pages: dict[_Page, int] = {}
        given: dict[_Page, _Given] = {}
        count = blocks = 0
        for allocation in allocations:
            owners[allocation.owner] = allocation
            count += 1
            for version, length, number in allocation.blocks:
                page = (version, length, number >> _PAGE_BITS)
                pages[page] = pages.get(page, 0) | 1 << (number & _PAGE - 1)
                this = (allocation.since, allocation.generation, number)
                given[page] = max(given.get(page, this), this)
                blocks += 1
        if len(owners) != count:
            raise InconsistentLedger("an owner has two entries")
        if sum(page.bit_count() for page in pages.values()) != blocks:
            raise InconsistentLedger(_first_double(owners.values()))
        spaces: dict[tuple[int, int], set[int]] = {}
        for version, length, number in pages:
            spaces.setdefault((version, length), set()).add(number)
        frozen = {space: frozenset(numbers) for space, numbers in spaces.items()}
        deadlines = ((a.deadline, a.generation, a.owner) for a in owners.values() if a.deadline is not None)
        return cls(
            generation, Map.of(owners.items()), Map.of(pages.items()), frozen, Map.of(given.items()), Heap.of(deadlines)
        )

    def __len__(self) -> int:
        return len(self.owners)

    def __iter__(self) -> Iterator[Allocation]:
        """Held and resting allocations, in no particular order."""
        return (allocation for _, allocation in self.owners.items())

    def get(self, owner: Owner) -> Allocation | None:
        """What this very owner holds, or had and what still rests."""
        return self.owners.get(owner)

    def apply(self, put: Iterable[Allocation], drop: Iterable[Owner], generation: int) -> Ledger:
        """One transaction. Raises InconsistentLedger when a block of `put` is another owner's."""
        put = tuple(put)
        owners, deadlines = self.owners, self.deadlines
        usage = _Usage(self.used, self.spaces, self.last_given)
        for owner in (*drop, *(allocation.owner for allocation in put)):
            if (old := owners.get(owner)) is not None:
                for block in old.blocks:
                    usage.clear(block)
                owners = owners.discard(owner)
        for allocation in put:
            for block in allocation.blocks:
                if not usage.mark(block, allocation):
                    raise InconsistentLedger(f"{block} is to go to {allocation.owner} and is somebody else's")
            owners = owners.set(allocation.owner, allocation)
            if allocation.deadline is not None:
                deadlines = deadlines.push((allocation.deadline, allocation.generation, allocation.owner))
        if len(deadlines) > 64 + 2 * len(owners):
            live = (a for _, a in owners.items() if a.deadline is not None)
            deadlines = Heap.of((a.deadline, a.generation, a.owner) for a in live if a.deadline is not None)
        return Ledger(generation, owners, usage.used, usage.spaces, usage.last_given, deadlines)

    def pop_due(self, now: float) -> tuple[Ledger, list[Allocation]]:
        """The allocations whose deadline has come, and a ledger that does not name them again unless they change."""
        deadlines = self.deadlines
        due = []
        while (first := deadlines.peek()) is not None and first[0] <= now:
            deadlines = deadlines.pop()
            allocation = self.owners.get(first[2])
            if allocation is not None and allocation.generation == first[1]:
                due.append(allocation)
        if deadlines is self.deadlines:
            return self, due
        return replace(self, deadlines=deadlines), due

    def holder(self, block: Block) -> Allocation | None:
        """Who holds exactly this block, or had it and it still rests. Looks at every allocation."""
        if not self.uses(block):
            return None
        return next((allocation for allocation in self if block in allocation.blocks), None)

    def uses(self, block: Block) -> bool:
        """Whether exactly this block is held or resting."""
        bits = self.used.get((block.version, block.length, block.number >> _PAGE_BITS)) or 0
        return bool(bits >> (block.number & _PAGE - 1) & 1)

    def lowest_free(self, pool: Pool, after: int | None = None) -> Block | None:
        """The pool's first block that is neither reserved nor overlaps one that is held or resting; None when there is none.

        With `after`, a block number, the first one behind that, and from the start again. Looks at each reserved range and
        at each page with something used at most once.
        """
        if after is None:
            return self._first_free(pool, pool.ranges)
        behind = tuple((max(start, after + 1), end) for start, end in pool.ranges if after + 1 < end)
        before = tuple((start, min(end, after + 1)) for start, end in pool.ranges if start <= after)
        return self._first_free(pool, behind) or self._first_free(pool, before)

    def _first_free(self, pool: Pool, ranges: Iterable[tuple[int, int]]) -> Block | None:
        version, length = pool.space
        others = self._other_lengths(pool)
        for start, end in ranges:
            while start < end:
                if others and (behind := self._behind_larger(version, length, start, others)) is not None:
                    start = behind
                    continue
                number = start >> _PAGE_BITS
                page = self.used.get((version, length, number)) or 0
                if others:
                    page |= self._shadow(version, length, number, others)
                page >>= start & _PAGE - 1
                candidate = start + (~page & page + 1).bit_length() - 1
                page_end = (start | _PAGE - 1) + 1
                if candidate < min(end, page_end):
                    return Block(version, length, candidate)
                start = page_end
        return None

    def _other_lengths(self, pool: Pool) -> tuple[int, ...]:
        """Lengths of used blocks that may overlap blocks of the pool. What a pool was cut out of does not count."""
        version, length = pool.space
        above = pool.network.prefixlen if pool.parent is not None else -1
        return tuple(sorted(n for v, n in self.spaces if v == version and n != length and n > above))

    def _behind_larger(self, version: int, length: int, number: int, others: tuple[int, ...]) -> int | None:
        """The first number behind a used block of a page or more that covers this one; None when there is no such block."""
        for other in others:
            shift = length - other
            if shift >= _PAGE_BITS and self.uses(Block(version, other, number >> shift)):
                return (number >> shift) + 1 << shift
        return None

    def _shadow(self, version: int, length: int, page: int, others: tuple[int, ...]) -> int:
        """Bits of the page's blocks that overlap a used block of another length (of less than a page, if that is larger)."""
        first, shadow = page << _PAGE_BITS, 0
        for other in others:
            pages = self.spaces[version, other]
            if (shift := length - other) >= _PAGE_BITS:
                continue
            if shift > 0:
                bits = self.used.get((version, other, first >> shift >> _PAGE_BITS)) or 0
                bits = bits >> (first >> shift & _PAGE - 1) & (1 << (_PAGE >> shift)) - 1
                for low in _ones(bits):
                    shadow |= (1 << (1 << shift)) - 1 << (low << shift)
                continue
            shift = -shift
            for narrow in pages:
                if narrow >> shift != page:
                    continue
                base = (narrow << _PAGE_BITS) >> shift & _PAGE - 1
                if shift >= _PAGE_BITS:
                    shadow |= 1 << base
                    continue
                bits, group = self.used.get((version, other, narrow)) or 0, (1 << (1 << shift)) - 1
                while bits:
                    low = (bits & -bits).bit_length() - 1 >> shift
                    shadow |= 1 << (base + low)
                    bits &= ~(group << (low << shift))
        return shadow

    def last_given_of(self, pool: Pool) -> int | None:
        """The number of the pool's block that somebody got last, None when nobody got one. Looks at each page once."""
        space, first, last = pool.space, pool.ranges[0][0], pool.ranges[-1][1]
        pages = (self.last_given.get((*space, page)) for page in self.spaces.get(space, ()))
        return max((given for given in pages if given and first <= given[2] < last), default=(0.0, 0, None))[2]

    def used_in(self, pool: Pool) -> int:
        """How many of the blocks that the pool hands out are held or resting themselves."""
        version, length = pool.space
        return sum(self.used_between(version, length, start, end) for start, end in pool.ranges)

    def used_between(self, version: int, length: int, start: int, end: int) -> int:
        """How many blocks of this length with numbers from `start` up to `end` are held or resting. Looks at each page once."""
        count = 0
        for page in self.spaces.get((version, length), ()):
            low, high = max(start - page * _PAGE, 0), min(end - page * _PAGE, _PAGE)
            if low < high:
                bits = self.used.get((version, length, page)) or 0
                count += (bits >> low & (1 << high - low) - 1).bit_count()
        return count


@dataclass(slots=True)
class _Usage:
    """The bitmaps while a transaction changes them."""

    used: Map[_Page, int]
    spaces: Spaces
    last_given: Map[_Page, _Given]

    def mark(self, block: Block, allocation: Allocation) -> bool:
        """False when it was marked already."""
        page, bit = _place(block)
        bits = self.used.get(page) or 0
        if bits & bit:
            return False
        if not bits:
            pages = self.spaces.get(page[:2], frozenset()) | {page[2]}
            self.spaces = {**self.spaces, page[:2]: pages}
        self.used = self.used.set(page, bits | bit)
        given = (allocation.since, allocation.generation, block.number)
        if (last := self.last_given.get(page)) is None or last < given:
            self.last_given = self.last_given.set(page, given)
        return True

    def clear(self, block: Block) -> None:
        page, bit = _place(block)
        bits = (self.used.get(page) or 0) & ~bit
        if bits:
            self.used = self.used.set(page, bits)
            return
        self.used = self.used.discard(page)
        pages = self.spaces[page[:2]] - {page[2]}
        self.spaces = {space: p for space, p in {**self.spaces, page[:2]: pages}.items() if p}


def _place(block: Block) -> tuple[_Page, int]:
    return (block.version, block.length, block.number >> _PAGE_BITS), 1 << (block.number & _PAGE - 1)


def _ones(bits: int) -> Iterator[int]:
    """Positions of the bits that are set, lowest first."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def _first_double(allocations: Iterable[Allocation]) -> str:
    seen: dict[Block, Owner] = {}
    for allocation in allocations:
        for block in allocation.blocks:
            if block in seen:
                return f"{block} belongs to {seen[block]} and to {allocation.owner}"
            seen[block] = allocation.owner
    raise AssertionError("no block is there twice")
