"""A ledger in pieces, pure: what each shard holds, how shards make a ledger, and in which order a change is written.

Each shard is one object that is changed by compare-and-swap alone. Two things have to be unique in the whole ledger: an owner,
and an address. So both have a shard by their name:

- An owner's entry is in its home shard. Two writers for one owner meet there.
- An address's claim is in the shard of its address (unless that is the holder's home, where the entry itself says it). Two writers
  for one address meet there. A block that reaches over several such shards is claimed in all of them.

A change is written in rounds: entries that go, new claims, new entries, claims that are not needed any more. What is granted is the
entry. A writer that dies in between leaves a claim without an entry: the block counts as used, for nobody, until somebody
reclaims it. Reclaiming first changes the home shard, so that an entry that is still on its way loses there; only then the claim goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from ipam.codec import decode, encode
from ipam.ledger import Ledger
from ipam.model import UNCONFIRMED, Allocation, Block, InconsistentLedger, Owner, block_of

FORMAT = "rhizome-ipam-shard"
FORMAT_VERSION = 1
#: Addresses that differ only in their last eight bits have one shard, so that small blocks have one, too.
_GRANULE_BITS = 8


class BadShard(ValueError):
    """The text is not a shard of this ledger, in a format that this program knows; the message ends "it ..."."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One piece. `claims` are blocks of this shard's addresses, with the home shard of their holder. `fence` grows when a
    reclaim wants to be sure that nobody else's write is on its way."""

    index: int
    count: int
    generation: int = 0
    fence: int = 0
    entries: Mapping[Owner, Allocation] = field(default_factory=dict)
    claims: Mapping[Block, int] = field(default_factory=dict)

    def text(self) -> str:
        """As JSON, compact: 60,000 entries have to fit into a few dozen objects of 1 MiB."""
        fields = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "shard": self.index,
            "shards": self.count,
            "generation": self.generation,
            "fence": self.fence,
            "entries": [encode(entry) for entry in self.entries.values()],
            "claims": {str(block): home for block, home in self.claims.items()},
        }
        return json.dumps(fields, separators=(",", ":"))


def parse(text: str) -> Shard:
    """Raises BadShard."""
    try:
        fields: dict[str, Any] = json.loads(text)
        if fields.get("format") != FORMAT:
            raise BadShard("it is no piece of an address ledger")
        if int(fields["version"]) > FORMAT_VERSION:
            raise BadShard(
                f"its format version is {fields['version']} and this program knows {FORMAT_VERSION}; upgrade"
            )
        entries = [decode(entry) for entry in fields["entries"]]
        shard = Shard(
            int(fields["shard"]),
            int(fields["shards"]),
            int(fields["generation"]),
            int(fields["fence"]),
            {entry.owner: entry for entry in entries},
            {block_of(block): int(home) for block, home in fields["claims"].items()},
        )
    except BadShard:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise BadShard(f"it is damaged ({exc!r})") from exc
    if len(shard.entries) != len(entries) or not 0 <= shard.index < shard.count:
        raise BadShard("it contradicts itself")
    return shard


def home(owner: Owner, count: int) -> int:
    """The shard of an owner's entry."""
    key = "\0".join((owner.kind, owner.namespace, owner.name, owner.uid))
    return int.from_bytes(blake2b(key.encode(), digest_size=4).digest()) % count


def places(block: Block, count: int) -> range | tuple[int, ...]:
    """The shards of a block's addresses."""
    granule = (32 if block.version == 4 else 128) - _GRANULE_BITS
    if block.length >= granule:
        return ((block.number >> block.length - granule) % count,)
    size = 1 << granule - block.length
    if size >= count:
        return range(count)
    first = block.number << granule - block.length
    return tuple((first + offset) % count for offset in range(size))


def compose(shards: Iterable[Shard]) -> Ledger:
    """The ledger that all shards of one moment make. Raises InconsistentLedger when they contradict each other."""
    known = {shard.index: shard for shard in shards}
    entries = [entry for shard in known.values() for entry in shard.entries.values()]
    for shard in known.values():
        for owner, entry in shard.entries.items():
            if home(owner, shard.count) != shard.index:
                raise InconsistentLedger(
                    f"{owner} is in shard {shard.index} and belongs into {home(owner, shard.count)}"
                )
            for block in entry.blocks:
                for place in places(block, shard.count):
                    other = known.get(place)
                    if place != shard.index and (other is None or other.claims.get(block) != shard.index):
                        raise InconsistentLedger(
                            f"{block} of {owner} is not claimed in shard {place}: it was changed by hand"
                        )
    loose = {block for _, block, _ in unconfirmed(known.values())}
    held = {block for entry in entries for block in entry.blocks}
    nobodys = (Allocation(Owner(UNCONFIRMED, "", str(block), ""), (block,), 0, 0.0) for block in sorted(loose - held))
    generation = max((shard.generation for shard in known.values()), default=0)
    return Ledger.of([*entries, *nobodys], generation)


def unconfirmed(shards: Iterable[Shard]) -> Iterator[tuple[int, Block, int]]:
    """Claims without an entry: the shard they are in, the block, and the home shard that lacks the entry."""
    known = {shard.index: shard for shard in shards}
    held = {
        index: {block for entry in shard.entries.values() for block in entry.blocks} for index, shard in known.items()
    }
    for shard in known.values():
        for block, at_home in shard.claims.items():
            if block not in held.get(at_home, ()):
                yield shard.index, block, at_home


@dataclass(frozen=True, slots=True)
class Rounds:
    """What each round changes, by shard: owners that go, claims to set, entries to set, blocks whose claims go."""

    drop: Mapping[int, frozenset[Owner]]
    claim: Mapping[int, Mapping[Block, int]]
    put: Mapping[int, tuple[Allocation, ...]]
    unclaim: Mapping[int, frozenset[Block]]


def rounds(before: Ledger, after: Ledger, count: int) -> Rounds:
    """How to get from one ledger to the other.

    Owners that go are first, because their blocks may have gone to others in the same change.
    """
    put, gone = after.owners.changes_since(before.owners)
    drop: dict[int, set[Owner]] = {}
    claim: dict[int, dict[Block, int]] = {}
    entries: dict[int, list[Allocation]] = {}
    unclaim: dict[int, set[Block]] = {}
    for owner in (*put, *gone):
        if owner.kind == UNCONFIRMED:
            continue
        at_home = home(owner, count)
        old, new = before.get(owner), put.get(owner)
        had = set(old.blocks) if old is not None else set()
        has = set(new.blocks) if new is not None else set()
        if new is not None:
            entries.setdefault(at_home, []).append(new)
        else:
            drop.setdefault(at_home, set()).add(owner)
        for block in has ^ had:
            for place in places(block, count):
                if place != at_home and block in has:
                    claim.setdefault(place, {})[block] = at_home
                elif place != at_home:
                    unclaim.setdefault(place, set()).add(block)
    return Rounds(
        {index: frozenset(owners) for index, owners in drop.items()},
        claim,
        {index: tuple(new) for index, new in entries.items()},
        {place: frozenset(left) for place, blocks in unclaim.items() if (left := blocks - claim.get(place, {}).keys())},
    )


def with_claims(shard: Shard, claims: Mapping[Block, int]) -> Shard:
    return replace(shard, claims={**shard.claims, **claims})


def without_claims(shard: Shard, blocks: Iterable[Block]) -> Shard:
    gone = set(blocks)
    return replace(shard, claims={block: at for block, at in shard.claims.items() if block not in gone})


def with_entries(shard: Shard, put: Iterable[Allocation], generation: int) -> Shard:
    return replace(shard, entries={**shard.entries, **{entry.owner: entry for entry in put}}, generation=generation)


def without_entries(shard: Shard, gone: Set[Owner], generation: int) -> Shard:
    entries = {owner: entry for owner, entry in shard.entries.items() if owner not in gone}
    return replace(shard, entries=entries, generation=generation)


def advance(ledger: Ledger, before: Mapping[int, Shard], after: Mapping[int, Shard]) -> Ledger:
    """`compose(after)` from the ledger of `before`: costs what changed, and a look at all claims.

    Raises InconsistentLedger.
    """
    put: dict[Owner, Allocation] = {}
    gone: set[Owner] = set()
    for index, shard in after.items():
        old = before[index].entries if index in before else {}
        if shard.entries is not old:
            put |= {owner: entry for owner, entry in shard.entries.items() if old.get(owner) != entry}
            gone |= old.keys() - shard.entries.keys()
    loose = {block for _, block, _ in unconfirmed(after.values())}
    nobodys = {Owner(UNCONFIRMED, "", str(block), ""): block for block in loose}
    gone |= {owner for owner, _ in ledger.owners.items() if owner.kind == UNCONFIRMED and owner not in nobodys}
    generation = max(shard.generation for shard in after.values())
    held = ledger.apply(put.values(), gone - put.keys(), generation)
    fresh = (
        Allocation(owner, (block,), 0, 0.0)
        for owner, block in nobodys.items()
        if held.get(owner) is None and not held.uses(block)
    )
    return held.apply(fresh, (), generation)
