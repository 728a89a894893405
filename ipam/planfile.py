"""The file that `rhizome-ipam plan` reads, as a document (YAML or JSON) that somebody else has parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import ConfigError
from agent.model import IPNetwork
from ipam.fields import Fields
from ipam.inventory import Stock
from ipam.model import Pool
from ipam.networks import CLUSTER_USES, RESERVED, Cluster, Plan, Range, Use, reserved


@dataclass(frozen=True, slots=True)
class Demand:
    """So many blocks are planned to come out of this pool."""

    pool: Pool
    planned: int | None

    @property
    def usable(self) -> int:
        """Addresses in a block that hosts can have: in IPv4 blocks of four and more, not the first and the last."""
        size = 1 << self.pool.network.max_prefixlen - self.pool.space[1]
        return size - 2 if self.pool.network.version == 4 and size >= 4 else size

    @property
    def fits(self) -> bool:
        return self.planned is None or self.planned <= self.pool.size

    def __str__(self) -> str:
        each = f"blocks of {self.usable:,} addresses" if self.usable > 1 else "addresses"
        planned = f"; you plan {self.planned:,}" if self.planned is not None else ""
        return f"pool {self.pool} holds {self.pool.size:,} {each}{planned}{'' if self.fits else ': too few'}"


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody who wants `count` places in one pool of the inventory with these labels."""

    name: str
    labels: Mapping[str, str]
    count: int


@dataclass(frozen=True, slots=True)
class PlanFile:
    """Everything a plan file says."""

    plan: Plan
    demands: tuple[Demand, ...] = ()
    inventory: tuple[Stock, ...] = ()
    requests: tuple[Request, ...] = ()


def parse(document: Any) -> PlanFile:
    """Raises ConfigError with every problem found."""
    problems: list[str] = []
    top = Fields(document, "", problems)
    clusters = [_cluster(table, seed=True) for table in top.tables("seeds")]
    clusters += [_cluster(table, seed=False) for table in top.tables("shoots")]
    own = [_reserved(table) for table in top.tables("reserved")]
    demands = [_demand(table) for table in top.tables("pools")]
    inventory = [_stock(table) for table in top.tables("inventory")]
    requests = [
        Request(table.text("name", None), table.labels("labels"), table.integer("count", 1, 1, 1 << 40) or 1)
        for table in top.tables("requests")
    ]
    top.close()
    plan = Plan({})
    try:
        plan = Plan.of(clusters, [*RESERVED, *(item for item in own if item is not None)])
    except ValueError as exc:
        problems += str(exc).splitlines()
    if problems:
        raise ConfigError(*problems)
    return PlanFile(plan, tuple(d for d in demands if d is not None), tuple(inventory), tuple(requests))


def _cluster(table: Fields, *, seed: bool) -> Cluster:
    name = table.text("name", None)
    above = table.text("parent" if seed else "seed")
    found = tuple(
        Range(network, use, name, place) for use in CLUSTER_USES for network, place in table.networks(use.value)
    )
    tunnels = (
        tuple(Range(network, Use.TUNNEL, name, place) for network, place in table.networks("tunnel")) if seed else ()
    )
    if seed and not tunnels:
        tunnels = tuple(Range(r.network, Use.TUNNEL, name, "default") for r in RESERVED if r.use is Use.FOR_TUNNELS)
    return Cluster(name, above, found, tunnels, table.labels("labels"))


def _reserved(table: Fields) -> Range | None:
    network: IPNetwork | None = table.network("network")
    what = table.text("for", None)
    return None if network is None else reserved(str(network), what)


def _demand(table: Fields) -> Demand | None:
    name, network, length = table.text("name", None), table.network("network"), table.integer("length", None, 0, 128)
    taken = tuple(found for found, _ in table.networks("reserved"))
    planned = table.integer("planned", None, 0, 1 << 62)
    if network is None:
        return None
    try:
        return Demand(Pool(network, taken, length, name), planned)
    except ValueError as exc:
        table.complain("", str(exc))
        return None


def _stock(table: Fields) -> Stock:
    capacity, used = table.integer("capacity", 0, 0, 1 << 62), table.integer("used", 0, 0, 1 << 62)
    return Stock(table.text("name", None), capacity or 0, used or 0, table.labels("labels"))
