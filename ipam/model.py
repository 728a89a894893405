"""Pools, owners and allocations: immutable values, no I/O, no clock. What holds them all is `ipam.ledger`.

An address is handed out as a `Block`: a prefix of the pool's length (a /32 or /128 for single addresses, a /28 in a pool of
/28s). A block belongs to nobody's pool: all blocks of a family live in one space, so that two pools that overlap, or a pool
that was redefined, can never hand out the same address twice.
Times are seconds since the epoch, passed in as `now`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network, summarize_address_range
from typing import NamedTuple

from agent.errors import Retry, StoreError
from agent.model import IPAddress, IPNetwork

#: A freed address rests this long: twice WireGuard's Reject-After-Time (whitepaper section 6.1), so that no session of its
#: former owner is still alive when it gets a new one.
QUARANTINE_S = 360.0
#: How many addresses a tunnel network keeps for its servers by default: with the network address, the first /29.
SERVERS = 7


class InconsistentLedger(StoreError):
    """A ledger's entries contradict each other (one address with two owners). Nothing is granted from it."""

    retry = Retry.NEVER


class NotHeld(StoreError):
    """A pool is cut out of a block that its owner does not hold (any more). Nothing is given from it."""

    retry = Retry.NEVER


class NotOwner(StoreError):
    """The address belongs to another incarnation (UID) of the same name; it keeps it."""

    retry = Retry.NEVER


#: The kind of the owner that stands for nobody: a store keeps this block from others until it is sure that it is not given.
UNCONFIRMED = "unconfirmed-claim"


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
    def first(self) -> int:
        """The first address, as a number."""
        return self.number << _BITS[self.version] - self.length

    @property
    def network(self) -> IPNetwork:
        return IPv4Network((self.first, self.length)) if self.version == 4 else IPv6Network((self.first, self.length))

    @property
    def address(self) -> IPAddress:
        """The block's first address: of a single-address block, the address."""
        return IPv4Address(self.first) if self.version == 4 else IPv6Address(self.first)

    def overlaps(self, other: Block) -> bool:
        """Whether the two have an address in common."""
        wider, narrower = (self, other) if self.length <= other.length else (other, self)
        same = narrower.number >> narrower.length - wider.length == wider.number
        return same and self.version == other.version

    def __str__(self) -> str:
        return str(self.address) if self.length == _BITS[self.version] else str(self.network)


_BITS = {4: 32, 6: 128}
_MAPPED = IPv6Network("::ffff:0:0/96")  # IPv4 addresses in IPv6 clothes (RFC 4291 section 2.5.5.2)


class Order(Enum):
    """Which of the free blocks a pool gives."""

    LOWEST = "lowest"  #: the first one
    NEXT = "next"  #: the first one behind the block that was given last, from the start again at the end


@dataclass(frozen=True, slots=True)
class Pool:
    """A network whose blocks are handed out. `length` is the prefix length of a block, None: single addresses.

    `reserved` networks are never handed out; a block that touches one is not either. `labels` are for choosing among pools.
    `parent` is the owner of the block that this pool was cut out of, None for a pool that stands alone. Raises ValueError.
    """

    network: IPNetwork
    reserved: tuple[IPNetwork, ...] = ()
    length: int | None = None
    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    order: Order = Order.LOWEST
    parent: Owner | None = None
    #: What can be handed out: sorted, disjoint, half-open ranges of block numbers.
    ranges: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bits = self.network.max_prefixlen
        length = bits if self.length is None else self.length
        if not self.network.prefixlen <= length <= bits:
            raise ValueError(
                f"pool {self.network}: blocks of length /{length} do not fit, /{self.network.prefixlen} to /{bits} do"
            )
        if self.network.version == 6 and self.network.overlaps(_MAPPED):
            raise ValueError(
                f"pool {self.network} holds IPv4 addresses written as IPv6 ({_MAPPED}): name the IPv4 network"
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

    def out_of(self, allocation: Allocation, reserved: tuple[IPNetwork, ...] = (), length: int | None = None) -> Pool:
        """A pool of the block that this owner holds of this pool: "a /28 for each shoot, addresses out of that".

        It gives only while the owner holds the block; when it gives the block up, nobody else gets that before the last
        block of this pool was given back. Raises NotHeld.
        """
        block = allocation.in_pool(self)
        if block is None or allocation.resting:
            raise NotHeld(f"{allocation.owner} holds no block of pool {self}; allocate it first")
        name = f"{self.name or self.network}/{allocation.owner.name}"
        return Pool(block.network, reserved, length, name, self.labels, self.order, allocation.owner)

    @property
    def space(self) -> tuple[int, int]:
        """IP version and block length: within one space no block is given twice, whatever the pool."""
        return self.network.version, self.length or 0

    @property
    def size(self) -> int:
        """Blocks that can be handed out."""
        return sum(end - start for start, end in self.ranges)

    def gives(self, block: Block) -> bool:
        """Whether the pool would give this block to somebody: it has the right length and is not reserved."""
        return (block.version, block.length) == self.space and any(a <= block.number < b for a, b in self.ranges)

    def covers(self, block: Block) -> bool:
        """Whether the block lies in this pool's network and has its length (reserved since then or not)."""
        above = block.length - self.network.prefixlen
        return (block.version, block.length) == self.space and block.number >> above == Block.of(self.network).number

    def __str__(self) -> str:
        single = self.length == self.network.max_prefixlen
        what = f"{self.network}" if single else f"{self.network} in blocks of /{self.length}"
        return f"{self.name} ({what})" if self.name else what


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
                if pool.network.overlaps(other.network):
                    raise ValueError(
                        f"pools {other} and {pool} overlap; an owner gets one block of each, so they have to be disjoint"
                    )

    def addresses(self, allocation: Allocation) -> tuple[IPAddress, ...]:
        """The allocation's address in each pool, in the order of the pools; what it holds of former pools is left out."""
        return tuple(block.address for pool in self.pools if (block := allocation.in_pool(pool)) is not None)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an owner holds. `generation` is the ledger's when this was last changed: of two versions the higher one is newer.

    `since`: when the owner got it. `expires`: when it is released by itself, None for never. `rests_until`: None while it is
    held; otherwise it is released, and nobody but the same owner gets these blocks before then. `parent`: whose block these
    blocks are part of, None when they came from a pool that stands alone.
    """

    owner: Owner
    blocks: tuple[Block, ...]
    generation: int
    since: float
    expires: float | None = None
    rests_until: float | None = None
    parent: Owner | None = None

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


def block_of(text: str) -> Block:
    """A block from its text form, "192.168.128.5" or "10.1.0.0/28". Raises ValueError, also for host bits."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    if "/" in text:
        return Block.of(ip_network(text))
    # Addresses of one pool differ in their last part only; parsing the rest of each would be most of loading a ledger.
    if ":" not in text:
        head, _, tail = text.rpartition(".")
        if len(tail) <= 3 and tail.isascii() and tail.isdigit() and (tail[0] != "0" or tail == "0") and int(tail) < 256:
            return Block(4, 32, _ipv4_head(head) | int(tail))
        return Block(4, 32, int(IPv4Address(text)))
    head, _, tail = text.rpartition(":")
    if 0 < len(tail) <= 4 and tail.isascii() and tail.isalnum():
        return Block(6, 128, _ipv6_head(head) | int(tail, 16))
    return Block(6, 128, int(IPv6Address(text)))


@lru_cache(maxsize=4096)
def _ipv4_head(head: str) -> int:
    return int(IPv4Address(head + ".0"))


@lru_cache(maxsize=4096)
def _ipv6_head(head: str) -> int:
    return int(IPv6Address(head + ":0"))
