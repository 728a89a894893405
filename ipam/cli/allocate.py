"""`rhizome-ipam allocate`: one block of each pool, or out of the block that somebody has."""

from __future__ import annotations

import argparse
import asyncio
import time
from ipaddress import ip_network

from agent.cli.table import table
from agent.errors import ConfigError, PoolExhausted
from agent.exits import Exit
from agent.model import IPNetwork
from ipam.allocate import allocate
from ipam.cli import common
from ipam.inventory import Stock, choose
from ipam.ledger import Ledger
from ipam.model import Allocation, NotHeld, Owner, Pool
from ipam.poolfile import PoolFile
from ipam.service import AddressBook


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("owner", metavar="KIND/NAMESPACE/NAME/UID", help="who gets it; asking again gives the same")
    common.store_arguments(parser)
    common.pool_arguments(parser)
    parser.add_argument(
        "--pool", action="append", default=[], metavar="NAME", help="only of this pool; may be repeated"
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the least used pool that has these labels; may be repeated",
    )
    parser.add_argument("--out-of", metavar="OWNER", help="out of the block of --pool that this owner has")
    parser.add_argument("--length", type=int, metavar="N", help="with --out-of: a block of /N, not a single address")
    parser.add_argument(
        "--for", dest="lifetime", type=float, metavar="SECONDS", help="released by itself after so long"
    )
    common.output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    allocation = asyncio.run(_allocate(arguments))
    common.show_allocations(arguments, [allocation])
    return Exit.OK


async def _allocate(arguments: argparse.Namespace) -> Allocation:
    who, file = common.owner(arguments.owner), common.pools(arguments)
    above = common.owner(arguments.out_of) if arguments.out_of else None
    if arguments.length is not None and above is None:
        raise ConfigError("--length: only together with --out-of; a pool's blocks have the length that its file says")
    wanted = common.labels(arguments.label)
    chosen = _named(file, arguments.pool)
    if above is not None and len(chosen) != 1:
        raise ConfigError("--out-of: name with --pool the one pool whose block is meant")
    if not wanted and above is None:
        common.policy(chosen, file.quarantine_s)  # wrong pools are told before the store is opened
    now = time.time()
    if arguments.lifetime is not None and not arguments.lifetime > 0:
        raise ConfigError("--for: has to be more than 0 seconds")
    expires = None if arguments.lifetime is None else now + arguments.lifetime

    def decide(ledger: Ledger) -> tuple[Ledger, Allocation]:
        pools = chosen
        if above is not None:
            pools = (_inner(ledger, chosen[0], above, arguments.length),)
        elif wanted:
            pools = (_by_label(ledger, file, chosen, wanted, who),)
        return allocate(ledger, common.policy(pools, file.quarantine_s), who, now, expires)

    async with common.opened(arguments.store) as store:
        book = AddressBook(store, common.policy(chosen[:1], file.quarantine_s))
        allocation, _ = await book.transact(decide)
    return allocation


def _named(file: PoolFile, names: list[str]) -> tuple[Pool, ...]:
    known = {pool.name or str(pool.network): pool for pool in file.pools}
    if missing := [name for name in names if name not in known]:
        raise ConfigError(
            *(f"--pool {name[:60]}: there is no such pool; there are {', '.join(known)}" for name in missing)
        )
    return tuple(known[name] for name in names) or file.pools


def _inner(ledger: Ledger, pool: Pool, above: Owner, length: int | None) -> Pool:
    held = ledger.get(above)
    if held is None:
        raise NotHeld(f"{above} holds nothing; allocate a block of pool {pool} for it first")
    try:
        inner = pool.out_of(held, length=length)
        return pool.out_of(held, _not_for_hosts(inner), length)
    except ValueError as exc:
        raise ConfigError(f"--length: {exc}") from exc


def _not_for_hosts(pool: Pool) -> tuple[IPNetwork, ...]:
    """The first and the last address of an IPv4 block: a /28 is one of 14 addresses, as in `rhizome-ipam plan`."""
    network = pool.network
    if network.version == 6 or pool.length != network.max_prefixlen or network.num_addresses < 4:
        return ()
    return ip_network(network[0]), ip_network(network[-1])


def _by_label(ledger: Ledger, file: PoolFile, pools: tuple[Pool, ...], wanted: dict[str, str], who: Owner) -> Pool:
    """The pool that the owner has a block of already, or the least used one that fits."""
    fitting = [pool for pool in pools if wanted.items() <= dict(pool.labels).items()]
    held = ledger.get(who)
    for pool in fitting:
        if held is not None and held.in_pool(pool) is not None:
            return pool
    stocks = {
        pool.name: Stock(
            pool.name, min(file.limits.get(pool.name, pool.size), pool.size), ledger.used_in(pool), dict(pool.labels)
        )
        for pool in pools
    }
    choice = choose(stocks.values(), wanted)
    if choice.chosen is None:
        rows = [(stock.name, why) for stock, why in choice.rejected]
        raise PoolExhausted("\n".join(["no pool fits", *table(("POOL", "WHY NOT"), rows)[1:]]))
    return next(pool for pool in pools if pool.name == choice.chosen.name)
