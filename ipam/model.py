"""Pools, owners, allocations, and the ledger that holds them: immutable values, no I/O, no clock.

An address is handed out as a `Block`: a prefix of the pool's length (a /32 or /128 for single addresses, a /28 in a pool of
/28s). All blocks of one family and length live in one space, whatever pool they came from, so that two pools that overlap,
or a pool that was redefined, can never hand out the same address twice.
Times are seconds since the epoch, passed in as `now`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network, summarize_address_range
from typing import NamedTuple

from agent.errors import Retry, StoreError
from agent.model import IPAddress, IPNetwork
from ipam.persistent import Heap, Map

#: A freed address rests this long: twice WireGuard's Reject-After-Time (whitepaper section 6.1), so that no session of its
#: former owner is still alive when it gets a new one.
QUARANTINE_S = 360.0
#: How many addresses a tunnel network keeps for its servers by default: with the network address, the first /29.
SERVERS = 7


class InconsistentLedger(StoreError):
    """A ledger's entries contradict each other (one address with two owners). Nothing is granted from it."""

    retry = Retry.NEVER


class NotOwner(StoreError):
    """The address belongs to another incarnation (UID) of the same name; it keeps it."""

    retry = Retry.NEVER


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Who holds an address. `namespace` is the control plane's; `uid` tells one incarnation of a name from the next.

    All four parts count: an owner that returns with another UID is another owner.
    """

    kind: str
    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name} ({self.uid})"


class Block(NamedTuple):
    """A prefix: the `number`-th of all prefixes of this `length` (in bits) and IP `version`, in canonical form by construction."""

    version: int
    length: int
    number: int

    @classmethod
    def of(cls, network: IPNetwork) -> Block:
        shift = network.max_prefixlen - network.prefixlen
        return cls(network.version, network.prefixlen, int(network.network_address) >> shift)

    @property
    def network(self) -> IPNetwork:
        bits = _BITS[self.version]
        first = self.number << (bits - self.length)
        return IPv4Network((first, self.length)) if self.version == 4 else IPv6Network((first, self.length))

    @property
    def address(self) -> IPAddress:
        """The block's first address: of a single-address block, the address."""
        first = self.number << (_BITS[self.version] - self.length)
        return IPv4Address(first) if self.version == 4 else IPv6Address(first)

    def __str__(self) -> str:
        return str(self.address) if self.length == _BITS[self.version] else str(self.network)


_BITS = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True)
class Pool:
    """A network whose blocks are handed out. `length` is the prefix length of a block, None: single addresses.

    `reserved` networks are never handed out; a block that touches one is not either. Raises ValueError.
    """

    network: IPNetwork
    reserved: tuple[IPNetwork, ...] = ()
    length: int | None = None
    #: What can be handed out: sorted, disjoint, half-open ranges of block numbers.
    ranges: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bits = self.network.max_prefixlen
        length = bits if self.length is None else self.length
        if not self.network.prefixlen <= length <= bits:
            raise ValueError(
                f"pool {self.network}: blocks of length /{length} do not fit, /{self.network.prefixlen} to /{bits} do"
            )
        shift = bits - length
        start = int(self.network.network_address) >> shift
        end = start + (1 << (length - self.network.prefixlen))
        ranges = []
        for taken in sorted(self.reserved, key=lambda n: int(n.network_address)):
            if taken.version != self.network.version:
                raise ValueError(f"pool {self.network}: reserved range {taken} is of another IP version")
            first, last = int(taken.network_address) >> shift, int(taken.broadcast_address) >> shift
            if start < min(first, end):
                ranges.append((start, min(first, end)))
            start = max(start, last + 1)
        if start < end:
            ranges.append((start, end))
        if not ranges:
            raise ValueError(f"pool {self.network}: all of it is reserved")
        object.__setattr__(self, "length", length)
        object.__setattr__(self, "ranges", tuple(ranges))

    @classmethod
    def tunnel(cls, network: IPNetwork, servers: int = SERVERS) -> Pool:
        """A tunnel network: the network address, the servers' own first addresses and an IPv4 broadcast address stay free."""
        if servers >= network.num_addresses:
            raise ValueError(f"pool {network}: too small for {servers} servers")
        reserved = _range(network[0], network[servers])
        return cls(network, (*reserved, *(_range(network[-1], network[-1]) if network.version == 4 else ())))

    @property
    def space(self) -> tuple[int, int]:
        """IP version and block length: within one space no block is given twice, whatever the pool."""
        return self.network.version, self.length or 0

    @property
    def size(self) -> int:
        """Blocks that can be handed out."""
        return sum(end - start for start, end in self.ranges)

    def covers(self, block: Block) -> bool:
        """Whether the block lies in this pool's network and has its length (reserved since then or not)."""
        above = block.length - self.network.prefixlen
        return (block.version, block.length) == self.space and block.number >> above == Block.of(self.network).number

    def __str__(self) -> str:
        single = self.length == self.network.max_prefixlen
        return f"{self.network}" if single else f"{self.network} in blocks of /{self.length}"


def _range(first: IPAddress, last: IPAddress) -> tuple[IPNetwork, ...]:
    return tuple(summarize_address_range(first, last))


@dataclass(frozen=True, slots=True)
class Policy:
    """From what and how addresses are given. An owner gets one block of every pool, all or none.

    Raises ValueError when two pools could hand out the same block.
    """

    pools: tuple[Pool, ...]
    quarantine_s: float = QUARANTINE_S

    def __post_init__(self) -> None:
        if not self.pools:
            raise ValueError("an address policy needs at least one pool")
        for i, pool in enumerate(self.pools):
            for other in self.pools[:i]:
                if pool.space == other.space and pool.network.overlaps(other.network):
                    raise ValueError(
                        f"pools {other} and {pool} overlap; give an owner one block of each only from disjoint ones"
                    )

    def addresses(self, allocation: Allocation) -> tuple[IPAddress, ...]:
        """The allocation's address in each pool, in the order of the pools; what it holds of former pools is left out."""
        return tuple(block.address for pool in self.pools if (block := allocation.in_pool(pool)) is not None)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an owner holds. `generation` is the ledger's when this was last changed: of two versions the higher one is newer.

    `since`: when the owner got it. `expires`: when it is released by itself, None for never. `rests_until`: None while it is
    held; otherwise it is released, and nobody but the same owner gets these blocks before then.
    """

    owner: Owner
    blocks: tuple[Block, ...]
    generation: int
    since: float
    expires: float | None = None
    rests_until: float | None = None

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return tuple(block.address for block in self.blocks)

    @property
    def resting(self) -> bool:
        return self.rests_until is not None

    @property
    def deadline(self) -> float | None:
        """When time alone changes this next: a quarantine's end or an expiry. None for never."""
        return self.expires if self.rests_until is None else self.rests_until

    def in_pool(self, pool: Pool) -> Block | None:
        """The block that came from this pool; None when it was allocated before the pool was there."""
        return next((block for block in self.blocks if pool.covers(block)), None)


#: Blocks per page of the bitmap of used blocks. A page is an int of 2 KiB when full, and exists only when something is used.
_PAGE_BITS = 14
_PAGE = 1 << _PAGE_BITS

_Page = tuple[int, int, int]  # version, length, number of the page
_Deadline = tuple[float, int, Owner]  # when, and the generation of the allocation it belongs to


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """All allocations, as a value: every change makes a new ledger that shares what did not change with the old one.

    `generation` grows with every change. `owners` is the truth; `used` (bitmaps of blocks held or resting) and `deadlines`
    follow from it.
    """

    generation: int = 0
    owners: Map[Owner, Allocation] = field(default_factory=Map)
    used: Map[_Page, int] = field(default_factory=Map)
    deadlines: Heap[_Deadline] = field(default_factory=Heap)

    @classmethod
    def of(cls, allocations: Iterable[Allocation], generation: int) -> Ledger:
        """A ledger from its entries. Raises InconsistentLedger when a block or an owner occurs twice."""
        owners = {}
        pages: dict[_Page, int] = {}
        count = blocks = 0
        for allocation in allocations:
            owners[allocation.owner] = allocation
            count += 1
            for version, length, number in allocation.blocks:
                page = (version, length, number >> _PAGE_BITS)
                pages[page] = pages.get(page, 0) | 1 << (number & _PAGE - 1)
                blocks += 1
        if len(owners) != count:
            raise InconsistentLedger("an owner has two entries")
        if sum(page.bit_count() for page in pages.values()) != blocks:
            raise InconsistentLedger(_first_double(owners.values()))
        deadlines = ((a.deadline, a.generation, a.owner) for a in owners.values() if a.deadline is not None)
        return cls(generation, Map.of(owners.items()), Map.of(pages.items()), Heap.of(deadlines))

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
        owners, used, deadlines = self.owners, self.used, self.deadlines
        for owner in (*drop, *(allocation.owner for allocation in put)):
            if (old := owners.get(owner)) is not None:
                used = _cleared(used, old.blocks)
                owners = owners.discard(owner)
        for allocation in put:
            used = _marked(used, allocation)
            owners = owners.set(allocation.owner, allocation)
            if allocation.deadline is not None:
                deadlines = deadlines.push((allocation.deadline, allocation.generation, allocation.owner))
        if len(deadlines) > 64 + 2 * len(owners):
            live = (a for _, a in owners.items() if a.deadline is not None)
            deadlines = Heap.of((a.deadline, a.generation, a.owner) for a in live if a.deadline is not None)
        return Ledger(generation, owners, used, deadlines)

    def pop_due(self, now: float) -> tuple[Ledger, list[Allocation]]:
        """The allocations whose deadline has come, and a ledger that does not name them again unless they change."""
        deadlines = self.deadlines
        due = []
        while (first := deadlines.peek()) is not None and first[0] <= now:
            deadlines = deadlines.pop()
            allocation = self.owners.get(first[2])
            if allocation is not None and allocation.generation == first[1]:
                due.append(allocation)
        return (
            Ledger(self.generation, self.owners, self.used, deadlines) if deadlines is not self.deadlines else self
        ), due

    def lowest_free(self, pool: Pool) -> Block | None:
        """The pool's first block that is neither reserved, held nor resting; None when there is none.

        Looks at each reserved range and each full page below it once.
        """
        version, length = pool.space
        for start, end in pool.ranges:
            while start < end:
                page = self.used.get((version, length, start >> _PAGE_BITS)) or 0
                page >>= start & _PAGE - 1
                candidate = start + (~page & page + 1).bit_length() - 1
                page_end = (start | _PAGE - 1) + 1
                if candidate < min(end, page_end):
                    return Block(version, length, candidate)
                start = page_end
        return None

    def used_in(self, pool: Pool) -> int:
        """How many of the blocks that the pool hands out are held or resting."""
        count = 0
        for (version, length, page), bits in self.used.items():
            if (version, length) == pool.space:
                for start, end in pool.ranges:
                    low, high = max(start - page * _PAGE, 0), min(end - page * _PAGE, _PAGE)
                    if low < high:
                        count += (bits >> low & (1 << high - low) - 1).bit_count()
        return count


def _marked(used: Map[_Page, int], allocation: Allocation) -> Map[_Page, int]:
    for block in allocation.blocks:
        page = (block.version, block.length, block.number >> _PAGE_BITS)
        bit = 1 << (block.number & _PAGE - 1)
        bits = used.get(page) or 0
        if bits & bit:
            raise InconsistentLedger(f"{block} is to go to {allocation.owner} and is somebody else's")
        used = used.set(page, bits | bit)
    return used


def _cleared(used: Map[_Page, int], blocks: tuple[Block, ...]) -> Map[_Page, int]:
    for block in blocks:
        page = (block.version, block.length, block.number >> _PAGE_BITS)
        bits = (used.get(page) or 0) & ~(1 << (block.number & _PAGE - 1))
        used = used.set(page, bits) if bits else used.discard(page)
    return used


def _first_double(allocations: Iterable[Allocation]) -> str:
    seen: dict[Block, Owner] = {}
    for allocation in allocations:
        for block in allocation.blocks:
            if block in seen:
                return f"{block} belongs to {seen[block]} and to {allocation.owner}"
            seen[block] = allocation.owner
    raise AssertionError("no block is there twice")


def block_of(text: str) -> Block:
    """A block from its text form, "192.168.128.5" or "10.1.0.0/28". Raises ValueError, also for host bits."""
    if "/" in text:
        return Block.of(ip_network(text))
    return Block(6, 128, int(IPv6Address(text))) if ":" in text else Block(4, 32, int(IPv4Address(text)))
