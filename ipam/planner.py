"""What an operator wants to know before anything is deployed: which pairs of seed and shoot can work, how, and what to change.

Mapping: where a range of the seed and one of the shoot are the same IPv4 addresses, each side sees the other's under a block
of 240/4, prefix by prefix (NETMAP). There is one /8 for each use; several ranges of a use are packed into it, largest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, ip_network

from agent.model import IPNetwork
from ipam.networks import NOBODYS, Clash, Cluster, Plan, Range, Use, between

#: Where ranges appear to the other side: the seed's by their use, and the shoot's.
SEED_BLOCKS: Mapping[Use, IPNetwork] = {
    Use.PODS: ip_network("241.0.0.0/8"),
    Use.NODES: ip_network("245.0.0.0/9"),
    Use.SERVICES: ip_network("245.128.0.0/9"),
}
SHOOT_BLOCKS: Mapping[Use, IPNetwork] = {
    Use.NODES: ip_network("242.0.0.0/8"),
    Use.SERVICES: ip_network("243.0.0.0/8"),
    Use.PODS: ip_network("244.0.0.0/8"),
}
#: Up to so many ranges that clash with each other, the smallest set of changes is found for sure; above, one that is close.
EXACT_MAX = 24


class Way(Enum):
    """How the control plane's packets reach a shoot on a seed."""

    DIRECT = "direct"
    MAPPED = "mapped"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Mapping1to1:
    """A range and the block of the same size under which the other side sees it."""

    item: Range
    block: IPNetwork

    def __str__(self) -> str:
        return f"{self.item.of} {self.item.use.value} {self.item.network} as {self.block}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A shoot on a seed. `mapped` is what has to be mapped, `reasons` why it is impossible."""

    seed: str
    shoot: str
    way: Way
    mapped: tuple[Mapping1to1, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One range to be given up. `proposal` is what to take instead, None where no private network of that size is free."""

    old: Range
    proposal: IPNetwork | None

    def __str__(self) -> str:
        return f"{self.old}: take {self.proposal or 'a smaller network; none of this size is free'}"


def pairs(plan: Plan, everywhere: bool = False) -> Iterator[Pair]:
    """Every shoot on its seed; one that has no seed yet, or with `everywhere` every one, on each seed that could host it."""
    seeds = [cluster for cluster in plan.clusters.values() if cluster.tunnels]
    for shoot in plan.clusters.values():
        if shoot.seed and not everywhere:
            yield pair(plan, plan.clusters[shoot.seed], shoot)
        elif not shoot.tunnels or shoot.seed:
            yield from (pair(plan, seed, shoot) for seed in seeds if seed.name != shoot.name)


def pair(plan: Plan, seed: Cluster, shoot: Cluster) -> Pair:
    """Whether and how this shoot can be on this seed."""
    clashes = list(between(seed, shoot))
    reasons = [str(clash) for cluster in (seed, shoot) for clash in plan.of_cluster(cluster)]
    reasons += [str(clash) for clash in clashes if not clash.mappable]
    if reasons:
        return Pair(seed.name, shoot.name, Way.IMPOSSIBLE, (), tuple(reasons))
    mapped: list[Mapping1to1] = []
    for blocks, clashing in ((SEED_BLOCKS, [c.one for c in clashes]), (SHOOT_BLOCKS, [c.other for c in clashes])):
        for use, block in blocks.items():
            found, error = pack([item for item in dict.fromkeys(clashing) if item.use is use], block)
            mapped += found
            reasons += [error] if error else []
    if reasons:
        return Pair(seed.name, shoot.name, Way.IMPOSSIBLE, (), tuple(reasons))
    return Pair(seed.name, shoot.name, Way.MAPPED if mapped else Way.DIRECT, tuple(mapped))


def pack(ranges: Iterable[Range], block: IPNetwork) -> tuple[list[Mapping1to1], str]:
    """Each range's place in the block, largest first; or why they do not fit, in words."""
    largest_first = sorted(ranges, key=lambda item: (item.network.prefixlen, item.first))
    packed: list[Mapping1to1] = []
    start, end = int(block.network_address), int(block.broadcast_address) + 1
    for item in largest_first:  # each is aligned, because all before it are multiples of its size
        size = item.network.num_addresses
        if start + size > end:
            whole = ", ".join(str(each.network) for each in largest_first)
            return (
                [],
                f"the {item.use.value} of {item.of} ({whole}) do not fit into {block}, where they would be mapped",
            )
        packed.append(Mapping1to1(item, IPv4Network((start, item.network.prefixlen))))
        start += size
    return packed, ""


def changes(plan: Plan, mapping: bool = True) -> tuple[tuple[Change, ...], bool]:
    """The fewest ranges to change so that every shoot works on its seed; and whether fewer are surely not possible.

    With `mapping`, what can be mapped is left as it is. Of equally few, those of shoots before those of seeds.
    """
    bad = [clash for clash in plan.clashes() if not (mapping and clash.mappable)]
    bad += _unpackable(plan) if mapping else []
    chosen, exact = _cover(plan, bad)
    proposals: list[Range] = []
    made = []
    for old in chosen:
        proposal = plan.propose(old, proposals)
        if proposal is not None:
            proposals.append(Range(proposal, old.use, old.of, "proposed"))
        made.append(Change(old, proposal))
    return tuple(made), exact


def _unpackable(plan: Plan) -> list[Clash]:
    """Clashes that mapping could solve if the blocks were larger."""
    found: list[Clash] = []
    for shoot in plan.clusters.values():
        if shoot.seed:
            seed = plan.clusters[shoot.seed]
            clashes = [clash for clash in between(seed, shoot) if clash.mappable]
            if clashes and pair(plan, seed, shoot).way is Way.IMPOSSIBLE:
                sides = ((SEED_BLOCKS, [c.one for c in clashes]), (SHOOT_BLOCKS, [c.other for c in clashes]))
                for blocks, items in sides:
                    full = {u for u, b in blocks.items() if pack({i for i in items if i.use is u}, b)[1]}
                    found += [clash for clash, item in zip(clashes, items, strict=True) if item.use in full]
    return list(dict.fromkeys(found))


def _cover(plan: Plan, clashes: Sequence[Clash]) -> tuple[list[Range], bool]:
    """A smallest set of ranges that every clash has one of: a vertex cover, component by component."""
    edges = [(clash.one, clash.other) for clash in clashes]
    forced = {a if b.use in NOBODYS else b for a, b in edges if a.use in NOBODYS or b.use in NOBODYS}
    neighbours: dict[Range, set[Range]] = {}
    for a, b in edges:
        if not forced & {a, b}:
            neighbours.setdefault(a, set()).add(b)
            neighbours.setdefault(b, set()).add(a)
    cost = {item: 1.0 + (0.001 if plan.clusters[item.of].tunnels else 0.0) for item in neighbours}
    chosen, exact, seen = list(dict.fromkeys(r for edge in edges for r in edge if r in forced)), True, set[Range]()
    for start in neighbours:
        if start not in seen:
            component = _component(neighbours, start)
            seen |= component
            part = {item: neighbours[item] for item in neighbours if item in component}
            if len(part) <= EXACT_MAX:
                chosen += _smallest(part, cost)
            else:
                exact = False
                chosen += _greedy(part, cost)
    return chosen, exact


def _component(neighbours: Mapping[Range, set[Range]], start: Range) -> set[Range]:
    found, todo = {start}, [start]
    while todo:
        fresh = neighbours[todo.pop()] - found
        found |= fresh
        todo += fresh
    return found


def _smallest(part: Mapping[Range, set[Range]], cost: Mapping[Range, float]) -> list[Range]:
    """Branch and bound: a range with the most clashes left is changed, or else all that it clashes with."""
    best: list[Range] = _greedy(part, cost)

    def search(left: Mapping[Range, set[Range]], chosen: list[Range], spent: float) -> None:
        nonlocal best
        busiest = max(left, key=lambda item: len(left[item] & left.keys()), default=None)
        if busiest is None or not left[busiest] & left.keys():
            if spent < sum(cost[item] for item in best):
                best = chosen
            return
        others = [item for item in left if item in left[busiest]]
        for take in ([busiest], others):
            spent_now = spent + sum(cost[item] for item in take)
            if spent_now < sum(cost[item] for item in best):
                search({i: n for i, n in left.items() if i not in take}, [*chosen, *take], spent_now)

    search(part, [], 0.0)
    return best


def _greedy(part: Mapping[Range, set[Range]], cost: Mapping[Range, float]) -> list[Range]:
    left, chosen = {item: set(others) for item, others in part.items()}, []
    while any(left.values()):
        busiest = max(left, key=lambda item: len(left[item]) / cost[item])
        chosen.append(busiest)
        for other in left.pop(busiest):
            left[other].discard(busiest)
    return chosen
