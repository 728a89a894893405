"""A ledger in ConfigMaps NAME-0, NAME-1, ... of one namespace: see ipam.stores.shards for what is where and why it is safe.

A read lists metadata only (a read of the current state, not of a cache), fetches the shards that are new to it, and lists again until
nothing changed in between: what it returns is the state of one moment. A write is as many compare-and-swaps by resourceVersion as
shards are concerned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from agent.errors import Conflict, Retry, StoreError
from ipam.ledger import Ledger
from ipam.model import Block
from ipam.stores import Version, require_newer
from ipam.stores.kubeapi import ConfigMaps, Object, connected
from ipam.stores.shards import (
    BadShard,
    Shard,
    advance,
    compose,
    parse,
    rounds,
    unconfirmed,
    with_claims,
    with_entries,
    without_claims,
    without_entries,
)

log = logging.getLogger("rhizome.ipam")

#: How many shards a new ledger gets: room for some 150,000 allocations, and objects of 6 KiB for 1,000 of them.
SHARDS = 64
#: etcd takes 1.5 MiB, ConfigMaps 1 MiB; some of that is not ours.
SHARD_BYTES_MAX = 1_000_000
#: A claim that is without its entry for so long is taken back: its writer is dead, or so slow that it has to try again.
CLAIM_GRACE_S = 30.0
READS_MAX = 20
PARALLEL = 8
#: States that are remembered for writes that come later.
SNAPSHOTS = 8
#: How long `changed` waits where it has no version to watch from.
POLL_S = 1.0


async def _each(work: Callable[[int], Awaitable[object]], shards: Iterable[int]) -> list[BaseException]:
    """Do it for each of them, some at a time, and say what went wrong. All is done also when some of it fails: nothing may be at
    work when its connections are closed."""
    limit = asyncio.Semaphore(PARALLEL)

    async def one(n: int) -> None:
        async with limit:
            await work(n)

    results = await asyncio.gather(*map(one, shards), return_exceptions=True)
    return [result for result in results if isinstance(result, BaseException)]


class UnusableShards(StoreError):
    """The ConfigMaps are not the complete ledger they should be. Nothing is changed and nothing is granted from them."""

    retry = Retry.NEVER


@dataclass(frozen=True, slots=True)
class _Piece:
    """A shard and the object that it was read from or written to."""

    shard: Shard
    object: Object


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The state of one moment. `collection` is the version of the list that showed it, "" for what we wrote ourselves."""

    ledger: Ledger
    pieces: Mapping[int, _Piece]
    loose: tuple[tuple[int, Block, int], ...] = ()
    collection: str = ""

    @property
    def version(self) -> Version:
        return Version(" ".join(f"{n}:{piece.object.version}" for n, piece in sorted(self.pieces.items())))

    @property
    def shards(self) -> dict[int, Shard]:
        return {n: piece.shard for n, piece in self.pieces.items()}


class KubernetesStore:
    """The ledger `name`. The first write makes its ConfigMaps; from then on a missing one is an error."""

    def __init__(self, maps: ConfigMaps, name: str, shards: int = SHARDS) -> None:
        self._maps = maps
        self._name = name
        self._count = shards
        self._pieces: dict[int, _Piece] = {}
        self._snapshots: OrderedDict[Version, _Snapshot] = OrderedDict()
        self._last = _Snapshot(Ledger(), {})
        self._loose_since: dict[tuple[int, Block, int], float] = {}
        self._turn = asyncio.Lock()

    async def read(self) -> tuple[Ledger, Version]:
        async with self._turn:
            snapshot = await self._current()
            if stale := self._overdue(snapshot):
                await self._reclaim(stale)
                snapshot = await self._current()
            return snapshot.ledger, snapshot.version

    async def write(self, ledger: Ledger, version: Version) -> None:
        async with self._turn:
            snapshot = self._snapshots.get(version)
            if snapshot is None:
                raise Conflict(f"this version of the ledger {self._name} is not known here; read it and decide again")
            require_newer(ledger, snapshot.ledger)
            pieces = dict(snapshot.pieces) or await self._initialise()
            try:
                tidy = await self._write(pieces, snapshot.ledger, ledger)
            finally:
                self._pieces |= pieces
            if tidy:  # otherwise the next read finds the claims that were left
                self._keep(_Snapshot(ledger, pieces, snapshot.loose))

    async def changed(self, version: Version) -> None:
        snapshot = self._snapshots.get(version)
        if snapshot is None or not snapshot.collection:
            await asyncio.sleep(POLL_S)
        else:
            await self._maps.changed(snapshot.collection)

    async def _write(self, pieces: dict[int, _Piece], before: Ledger, after: Ledger) -> bool:
        """Whether no claim is left that nobody needs any more. Raises StoreError."""
        todo, generation = rounds(before, after, self._count), after.generation
        await self._round(pieces, {n: without_entries(pieces[n].shard, o, generation) for n, o in todo.drop.items()})
        unclaimed = dict(pieces)
        try:
            await self._round(pieces, {n: with_claims(pieces[n].shard, c) for n, c in todo.claim.items()})
        except StoreError:
            # No entry that would rest on these claims was sent yet.
            made = {n: todo.claim[n] for n in todo.claim if pieces[n] is not unclaimed[n]}
            await self._quietly(pieces, {n: without_claims(pieces[n].shard, claims) for n, claims in made.items()})
            raise
        try:
            await self._round(pieces, {n: with_entries(pieces[n].shard, p, generation) for n, p in todo.put.items()})
        except Conflict:
            await self._reclaim([(n, b, home) for n, claims in todo.claim.items() for b, home in claims.items()])
            raise
        return await self._quietly(
            pieces, {n: without_claims(pieces[n].shard, gone) for n, gone in todo.unclaim.items()}
        )

    async def _round(self, pieces: dict[int, _Piece], new: Mapping[int, Shard]) -> None:
        """Replace these shards, each if it is as `pieces` has it, and note in `pieces` those that were.

        Raises Conflict when all others were changed by somebody else, StoreError when any may or may not be replaced.
        """
        texts = {n: shard.text() for n, shard in new.items()}
        for n, text in texts.items():
            if len(text) > SHARD_BYTES_MAX:
                raise UnusableShards(
                    f"{self._object(n)} would have {len(text):,} bytes and {SHARD_BYTES_MAX:,} is the most: begin a ledger "
                    "with more shards"
                )

        async def replace_one(n: int) -> None:
            pieces[n] = _Piece(new[n], await self._maps.replace(pieces[n].object, texts[n]))

        errors = await _each(replace_one, new)
        errors.sort(key=lambda error: isinstance(error, Conflict))
        if errors:
            raise errors[0]

    async def _quietly(self, pieces: dict[int, _Piece], new: Mapping[int, Shard]) -> bool:
        """As `_round`, and whether all was done; claims that this leaves behind are reclaimed later."""
        try:
            await self._round(pieces, new)
        except StoreError:
            return False
        return True

    async def _reclaim(self, claims: Iterable[tuple[int, Block, int]]) -> None:
        """Take back claims that have no entry, for sure: an entry that is still on its way to its home loses there first."""
        by_home: dict[int, list[tuple[int, Block]]] = {}
        for place, block, home in claims:
            by_home.setdefault(home, []).append((place, block))
        for home, found in by_home.items():
            with suppress(StoreError):
                shard = (await self._fetch(home)).shard
                held = {block for entry in shard.entries.values() for block in entry.blocks}
                loose = [(place, block) for place, block in found if block not in held]
                if loose:
                    await self._round(self._pieces, {home: replace(shard, fence=shard.fence + 1)})
                for place in {place for place, _ in loose}:
                    claiming = (await self._fetch(place)).shard
                    gone = {b for p, b in loose if p == place and claiming.claims.get(b) == home}
                    await self._round(self._pieces, {place: without_claims(claiming, gone)} if gone else {})
                    for block in gone:
                        fields = {"event": "ledger.claim_reclaimed", "block": str(block)}
                        log.info("a claim of %s without an allocation was taken back", block, extra=fields)

    def _overdue(self, snapshot: _Snapshot) -> list[tuple[int, Block, int]]:
        now = time.monotonic()
        self._loose_since = {claim: self._loose_since.get(claim, now) for claim in snapshot.loose}
        return [claim for claim, since in self._loose_since.items() if now - since >= CLAIM_GRACE_S]

    async def _current(self) -> _Snapshot:
        """The state of one moment: what was fetched is what a later list still shows. Raises StoreError."""
        for _ in range(READS_MAX):
            listed, collection = await self._maps.everything(whole=not self._pieces)
            objects = {self._index(item): item for item in listed}
            if missing := sorted(self._pieces.keys() - objects.keys()):
                raise UnusableShards(f"ConfigMap {self._object(missing[0])} is gone; nothing is granted. Put it back")
            known = self._pieces
            new = [n for n, item in objects.items() if n not in known or known[n].object.version != item.version]

            async def fetch(n: int, seen: Mapping[int, Object] = objects) -> None:
                await self._fetch(n, seen[n])

            if errors := await _each(fetch, new):
                raise errors[0]
            if all(self._pieces[n].object.version == item.version for n, item in objects.items()):
                return self._remember(collection)
        raise Conflict(f"the ledger {self._name} changes faster than it can be read; try again later")

    async def _fetch(self, n: int, item: Object | None = None) -> _Piece:
        """Read one shard, or take it from a list that has it whole. Raises StoreError."""
        if item is None or item.text is None:
            item = await self._maps.get(self._object(n))
        try:
            shard = parse(item.text or "")
        except BadShard as exc:
            raise UnusableShards(f"ConfigMap {item.name} is not usable: {exc}. It was left as it is") from exc
        if not self._pieces:
            self._count = shard.count
        known = self._pieces.get(n)
        if (shard.index, shard.count) != (n, self._count):
            raise UnusableShards(
                f"ConfigMap {item.name} is shard {shard.index} of {shard.count}, not {n} of {self._count}"
            )
        if known is not None and (item.uid != known.object.uid or shard.generation < known.shard.generation):
            raise UnusableShards(f"ConfigMap {item.name} was replaced by another or an older one; restart to accept it")
        self._pieces[n] = _Piece(shard, item)
        return self._pieces[n]

    def _remember(self, collection: str) -> _Snapshot:
        """The ledger of the pieces. Raises InconsistentLedger."""
        pieces = dict(self._pieces)
        if 0 not in pieces:  # it is made last: nothing was written before
            if any(piece.shard != Shard(n, self._count) for n, piece in pieces.items()):
                raise UnusableShards(f"ConfigMap {self._object(0)} is gone; nothing is granted. Put it back")
            self._pieces = {}
            return self._keep(_Snapshot(Ledger(), {}, (), collection))
        if missing := [n for n in range(self._count) if n not in pieces]:
            raise UnusableShards(f"ConfigMap {self._object(missing[0])} is gone; nothing is granted. Put it back")
        last = self._last
        if last.pieces.keys() == pieces.keys() and all(pieces[n].object == last.pieces[n].object for n in pieces):
            return self._keep(replace(last, collection=collection))
        shards = {n: piece.shard for n, piece in pieces.items()}
        ledger = advance(last.ledger, last.shards, shards) if last.pieces else compose(shards.values())
        return self._keep(_Snapshot(ledger, pieces, tuple(unconfirmed(shards.values())), collection))

    def _keep(self, snapshot: _Snapshot) -> _Snapshot:
        self._last = self._snapshots[snapshot.version] = snapshot
        self._snapshots.move_to_end(snapshot.version)
        while len(self._snapshots) > SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return snapshot

    async def _initialise(self) -> dict[int, _Piece]:
        """Make the ConfigMaps, the first of them last. Raises Conflict when somebody else has begun to write."""
        made: dict[int, _Piece] = {}

        async def make(n: int) -> None:
            shard = Shard(n, self._count)
            try:
                made[n] = _Piece(shard, await self._maps.create(self._object(n), shard.text()))
            except Conflict:
                item = await self._maps.get(self._object(n))
                if item.text != shard.text():
                    raise
                made[n] = _Piece(shard, item)

        for some in (range(1, self._count), range(1)):
            if errors := await _each(make, some):
                raise errors[0]
        return made

    def _object(self, n: int) -> str:
        return f"{self._name}-{n}"

    def _index(self, item: Object) -> int:
        number = item.name.removeprefix(f"{self._name}-")
        if not number.isdigit():
            raise UnusableShards(
                f"ConfigMap {item.name} has the label of ledger {self._name} and is none of its shards"
            )
        return int(number)


@asynccontextmanager
async def connect(namespace: str, name: str, shards: int = SHARDS) -> AsyncIterator[KubernetesStore]:
    """The ledger `name`, by kubeconfig or as the pod that we are. Raises StoreError."""
    async with connected(namespace, name) as maps:
        yield KubernetesStore(maps, name, shards)
