"""Who gets which block: allocate, release, and what time does by itself. Pure functions from ledger to ledger.

An allocation is held until it is released or expires, then it rests, then it is gone:

    allocate -> held -- release, expiry --> resting -- quarantine over --> free
                 ^                             |
                 +------- same owner ----------+
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.errors import PoolExhausted
from ipam.ledger import Ledger
from ipam.model import Allocation, Block, NotHeld, NotOwner, Order, Owner, Policy, Pool
from ipam.usage import usage


def allocate(
    ledger: Ledger, policy: Policy, owner: Owner, now: float, expires: float | None = None
) -> tuple[Ledger, Allocation]:
    """One block of every pool for this owner, the first free one in the pool's order, and the ledger that says so.

    Sticky: an owner that holds blocks keeps them, and gets back those that still rest. Blocks of pools that are no longer
    in the policy stay its own too; of a pool that is new to it, it gets one. `expires` replaces the expiry there was.
    An unchanged answer leaves the ledger as it was (the same object, as far as `settle` had nothing to do).

    Raises PoolExhausted when any pool has no free block; then nothing is allocated from the others either. Raises NotHeld
    when a pool was cut out of a block that its owner has given up.
    """
    if expires is not None and expires <= now:
        raise ValueError(f"an allocation cannot expire at {expires}, before it is made at {now}")
    ledger = settle(ledger, policy, now)
    held = ledger.get(owner)
    blocks = held.blocks if held is not None else ()
    missing = [pool for pool in policy.pools if not any(pool.covers(block) for block in blocks)]
    if held is not None and not missing and not held.resting and held.expires == expires:
        return ledger, held
    blocks += tuple(_free(ledger, pool, now) for pool in missing)
    since = held.since if held is not None and not held.resting else now
    parent = next((pool.parent for pool in policy.pools if pool.parent is not None), None)
    allocation = Allocation(owner, blocks, ledger.generation + 1, since, expires, parent=parent)
    return ledger.apply((allocation,), (), allocation.generation), allocation


def release(ledger: Ledger, policy: Policy, owner: Owner, now: float) -> Ledger:
    """The owner's blocks rest from now on. Nothing happens when it holds none.

    Raises NotOwner when the name is held by another UID: a late release of a predecessor must not free its successor's.
    """
    ledger = settle(ledger, policy, now)
    held = ledger.get(owner)
    if held is None:
        for other in ledger:
            same_name = (other.owner.kind, other.owner.namespace, other.owner.name) == (
                owner.kind,
                owner.namespace,
                owner.name,
            )
            if same_name and not other.resting:
                raise NotOwner(f"{owner} holds nothing; {other.owner} does and keeps it: release needs its UID")
        return ledger
    if held.resting:
        return ledger
    return _changed(ledger, [replace(held, expires=None, rests_until=now + policy.quarantine_s)], [])


def settle(ledger: Ledger, policy: Policy, now: float) -> Ledger:
    """What time alone has changed: the expired begin to rest, counted from their expiry, and the rested are gone.

    The same object when nothing was due. Costs only what is due.
    """
    ledger, due = ledger.pop_due(now)
    resting, gone = [], []
    for allocation in due:
        ends = allocation.rests_until
        if ends is None and allocation.expires is not None:
            ends = allocation.expires + policy.quarantine_s
        if ends is not None and ends > now:
            resting.append(replace(allocation, expires=None, rests_until=ends))
        else:
            gone.append(allocation.owner)
    return _changed(ledger, resting, gone) if due else ledger


def sweep(ledger: Ledger, policy: Policy, gone: Iterable[Allocation], now: float) -> Ledger:
    """Garbage collection: as if the owners of these allocations had released them.

    An allocation that was changed since it was looked at (its generation is another one) stays: its owner is not gone.
    """
    ledger = settle(ledger, policy, now)
    resting = []
    for allocation in gone:
        held = ledger.get(allocation.owner)
        if held is not None and not held.resting and held.generation == allocation.generation:
            resting.append(replace(held, expires=None, rests_until=now + policy.quarantine_s))
    return _changed(ledger, resting, []) if resting else ledger


def _changed(ledger: Ledger, put: list[Allocation], drop: list[Owner]) -> Ledger:
    generation = ledger.generation + 1
    return ledger.apply([replace(allocation, generation=generation) for allocation in put], drop, generation)


def _free(ledger: Ledger, pool: Pool, now: float) -> Block:
    if pool.parent is not None:
        above = ledger.get(pool.parent)
        if above is None or above.resting or Block.of(pool.network) not in above.blocks:
            raise NotHeld(
                f"pool {pool} is part of a block that {pool.parent} does not hold any more; allocate that first"
            )
    block = ledger.lowest_free(pool, ledger.last_given_of(pool) if pool.order is Order.NEXT else None)
    if block is None:
        first = ledger.deadlines.peek()
        wait = f" the next quarantine or expiry ends in {first[0] - now:.0f} s;" if first is not None else ""
        raise PoolExhausted(
            f"no free block in pool {pool}: of {pool.size} are {usage(ledger, pool)};{wait} "
            "those who have one keep it; widen the pool, or release what is no longer needed"
        )
    return block
