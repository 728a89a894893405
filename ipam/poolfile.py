"""The file that says which pools there are: TOML, read into a policy.

quarantine_s = 360
[[pool]]
name = "tunnels"
network = "192.168.128.0/17"
length = 28                      # blocks of /28; without it, single addresses
reserved = ["192.168.128.0/28"]
labels = { region = "eu" }
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.errors import ConfigError
from agent.model import IPNetwork
from ipam.fields import Fields
from ipam.model import QUARANTINE_S, Order, Pool

_YEAR_S = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class PoolFile:
    """`limits`: how many blocks of a pool may be in use at most, by its name, where that is less than its size."""

    pools: tuple[Pool, ...]
    quarantine_s: float = QUARANTINE_S
    limits: Mapping[str, int] = field(default_factory=dict)


def parse(document: Mapping[str, Any]) -> PoolFile:
    """Raises ConfigError with every problem found."""
    problems: list[str] = []
    top = Fields(document, "", problems)
    quarantine_s = top.number("quarantine_s", QUARANTINE_S, 0.0, _YEAR_S)
    pools: list[Pool] = []
    limits: dict[str, int] = {}
    names: set[str] = set()
    for table in top.tables("pool"):
        name = table.text("name", None)
        network = table.network("network")
        length = table.integer("length", None, 0, 128)
        reserved = tuple(found for found, _ in table.networks("reserved"))
        servers = table.integer("servers", None, 0, 1 << 20)
        labels = tuple(sorted(table.labels("labels").items()))
        order = table.text("order", Order.LOWEST.value)
        limit = table.integer("limit", None, 1, 1 << 62)
        if name in names:
            table.complain("name", f"{name!r} is another pool's, too")
        names.add(name)
        if order not in (known.value for known in Order):
            table.complain("order", f"has to be {' or '.join(known.value for known in Order)}")
        elif network is not None:
            try:
                reserved += _servers(network, servers, length)
                pools.append(Pool(network, reserved, length, name, labels, Order(order)))
            except ValueError as exc:
                table.complain("", str(exc))
        if limit is not None:
            limits[name] = limit
    top.close()
    if not pools and not problems:
        problems.append("pool: there is none; write a [[pool]] with a name and a network")
    if problems:
        raise ConfigError(*problems)
    return PoolFile(tuple(pools), quarantine_s, limits)


def _servers(network: IPNetwork, servers: int | None, length: int | None) -> tuple[IPNetwork, ...]:
    """What `Pool.tunnel` keeps for servers, where `servers` is given."""
    if servers is None:
        return ()
    if length not in (None, network.max_prefixlen):
        raise ValueError("servers: only a pool of single addresses keeps some for servers; use `reserved`")
    return Pool.tunnel(network, servers).reserved
