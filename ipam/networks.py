"""Can the address plan of a tree of seeds and their shoots work? Every rule that it breaks, both ranges by name, and a free one.

A seed hosts control planes; each of its shoots is reached through a tunnel whose addresses come from the seed's tunnel
networks. A seed may itself be a shoot of another seed, its parent. What has to hold:

- No range touches a reserved one; only tunnels may use those that are reserved for tunnels.
- Nodes, pods and services of one cluster are disjoint, and so they are from the tunnel networks that end in it.
- Nodes, pods and services of a seed and of its shoot are disjoint (any against any: the shoot's nodes against the seed's pods
  too). Where both are IPv4, mapping can help: see ipam.planner.
- A child seed's tunnel networks differ from its parent's: both tunnels end on the child's machines. Siblings never meet, so
  they may be equal, and a grandparent's may be used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from ipaddress import ip_network

from agent.model import IPNetwork
from ipam.model import Pool


class Use(Enum):
    """What a range is for."""

    NODES = "nodes"
    PODS = "pods"
    SERVICES = "services"
    TUNNEL = "tunnel"
    RESERVED = "reserved"
    FOR_TUNNELS = "reserved for tunnels"


CLUSTER_USES = (Use.NODES, Use.PODS, Use.SERVICES)
NOBODYS = (Use.RESERVED, Use.FOR_TUNNELS)


@dataclass(frozen=True, slots=True)
class Range:
    """One network of a plan: whose it is, and where that is written."""

    network: IPNetwork
    use: Use
    of: str
    source: str
    first: int = field(init=False, repr=False, compare=False)
    last: int = field(init=False, repr=False, compare=False)
    version: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        first = int(self.network.network_address)
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "last", first + (1 << self.network.max_prefixlen - self.network.prefixlen) - 1)
        object.__setattr__(self, "version", self.network.version)

    def overlaps(self, other: Range) -> bool:
        return self.version == other.version and self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        if self.use in NOBODYS:
            return f"{self.network} (reserved: {self.of})"
        return f"{self.use.value} {self.network} of {self.of} ({self.source})"


def reserved(network: str, what: str, use: Use = Use.RESERVED) -> Range:
    """A range that nobody may use, or only tunnels."""
    return Range(ip_network(network), use, what, "reserved")


#: Reserved unless a plan says otherwise.
RESERVED: tuple[Range, ...] = (
    reserved("192.168.123.0/24", "the tunnels of older reversed VPNs"),
    reserved("192.168.128.0/17", "default tunnel network", Use.FOR_TUNNELS),
    reserved("fd8f:6d53:b97a:1::/96", "default tunnel network", Use.FOR_TUNNELS),
    reserved("240.0.0.0/8", "mapping of kube-apiserver"),
    reserved("241.0.0.0/8", "mapping of the seed's pods"),
    reserved("242.0.0.0/8", "mapping of the shoot's nodes"),
    reserved("243.0.0.0/8", "mapping of the shoot's services"),
    reserved("244.0.0.0/8", "mapping of the shoot's pods"),
    reserved("245.0.0.0/8", "mapping of the seed's nodes and services"),
)
#: Where a proposal is looked for, in this order, behind the private network that the range is in now.
PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10", "192.168.0.0/16", "fd00::/8")))


@dataclass(frozen=True)
class Cluster:
    """A seed or a shoot. `seed` names the seed that hosts its control plane, "" for none; a seed that has one is a child.

    `tunnels` are the tunnel networks of a seed's shoots, empty for a cluster that is no seed.
    """

    name: str
    seed: str = ""
    ranges: tuple[Range, ...] = ()
    tunnels: tuple[Range, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def everything(self) -> tuple[Range, ...]:
        return self.ranges + self.tunnels


class Rule(Enum):
    """What a clash breaks."""

    RESERVED = "is reserved"
    ONE_CLUSTER = "ranges of one cluster have to be disjoint"
    SEED_AND_SHOOT = "a seed's ranges and its shoot's have to be disjoint"
    TUNNEL = "a tunnel network and the ranges of the clusters at its ends have to be disjoint"
    PARENT = "a child seed's tunnel network has to differ from its parent's"


@dataclass(frozen=True, slots=True)
class Clash:
    """Two ranges that may not overlap and do. `other` is the one that is not the parent's, the seed's or the first of its
    cluster. `mappable`: mapping makes it work (IPv4, seed against shoot)."""

    one: Range
    other: Range
    rule: Rule
    mappable: bool = False

    def __str__(self) -> str:
        return f"{self.one} overlaps {self.other}: {self.rule.value}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A clash in words, with a free range for `move`, the one of the two that is easier to change; None where none is free."""

    clash: Clash
    move: Range
    proposal: IPNetwork | None

    def __str__(self) -> str:
        free = f"{self.proposal} is free for {self.move.use.value} of {self.move.of}"
        return f"{self.clash}; {free if self.proposal else 'no private network of that size is free'}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Seeds and shoots by name. Raises ValueError with every name that is missing, double, or its own ancestor."""

    clusters: Mapping[str, Cluster]
    reserved: Sequence[Range] = RESERVED
    children: Mapping[str, tuple[Cluster, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, clusters: Iterable[Cluster], reserved: Sequence[Range] = RESERVED) -> Plan:
        known: dict[str, Cluster] = {}
        problems = []
        for cluster in clusters:
            if cluster.name in known:
                problems.append(f"two clusters are called {cluster.name!r}: names are what ranges are told apart by")
            known[cluster.name] = cluster
        for cluster in known.values():
            above = known.get(cluster.seed)
            if cluster.seed and above is None:
                problems.append(f"{cluster.name}: its seed {cluster.seed!r} is not in the plan")
            elif above is not None and not above.tunnels:
                problems.append(f"{cluster.name}: {cluster.seed!r} is no seed: it has no tunnel network")
        problems += _circles(known)
        if problems:
            raise ValueError("\n".join(problems))
        children: dict[str, list[Cluster]] = {}
        for cluster in known.values():
            children.setdefault(cluster.seed, []).append(cluster)
        return cls(known, tuple(reserved), {name: tuple(below) for name, below in children.items()})

    def clashes(self) -> Iterator[Clash]:
        """Everything that clashes, cluster by cluster."""
        for cluster in self.clusters.values():
            yield from self.of_cluster(cluster)
            if cluster.seed:
                yield from between(self.clusters[cluster.seed], cluster)

    def of_cluster(self, cluster: Cluster) -> Iterator[Clash]:
        """What clashes in a cluster whatever seed it has."""
        everything = cluster.everything
        for index, one in enumerate(everything):
            for other in everything[:index]:
                if one.overlaps(other):
                    tunnel = Use.TUNNEL in (one.use, other.use) and one.use is not other.use
                    yield Clash(other, one, Rule.TUNNEL if tunnel else Rule.ONE_CLUSTER)
            for taken in self.reserved:
                if one.overlaps(taken) and not (one.use is Use.TUNNEL and taken.use is Use.FOR_TUNNELS):
                    yield Clash(one, taken, Rule.RESERVED)

    def problems(self) -> Iterator[Problem]:
        """Every clash with a proposal."""
        for clash in self.clashes():
            move = clash.one if clash.other.use in NOBODYS else clash.other
            yield Problem(clash, move, self.propose(move))

    def propose(self, old: Range, also: Iterable[Range] = ()) -> IPNetwork | None:
        """A private network of the same size that clashes with nothing that `old` may not clash with, nor with `also`."""
        taken = [*self.reserved, *also, *(r for r in self._around(self.clusters[old.of]) if r != old)]
        parents = sorted(PRIVATE, key=lambda private: not _inside(old.network, private))
        for private in parents:
            if private.version == old.version and private.prefixlen <= old.network.prefixlen:
                blocked = tuple(r.network for r in taken if r.version == old.version and r.network.overlaps(private))
                try:
                    pool = Pool(private, blocked, old.network.prefixlen)
                except ValueError:
                    continue  # all of it is taken
                first = pool.ranges[0][0] << old.network.max_prefixlen - old.network.prefixlen
                return type(old.network)((first, old.network.prefixlen))
        return None

    def _around(self, cluster: Cluster) -> Iterator[Range]:
        """All ranges of a cluster, of its seed, and of its own shoots."""
        yield from cluster.everything
        if cluster.seed:
            yield from self.clusters[cluster.seed].everything
        for below in self.children.get(cluster.name, ()):
            yield from below.everything


def between(seed: Cluster, shoot: Cluster) -> Iterator[Clash]:
    """What clashes between a cluster and the seed that hosts its control plane."""
    for theirs in shoot.ranges:
        for ours in seed.ranges:
            if theirs.overlaps(ours):
                yield Clash(ours, theirs, Rule.SEED_AND_SHOOT, mappable=theirs.version == 4)
        for tunnel in seed.tunnels:
            if theirs.overlaps(tunnel):
                yield Clash(tunnel, theirs, Rule.TUNNEL)
    for own in shoot.tunnels:
        for tunnel in seed.tunnels:
            if own.overlaps(tunnel):
                yield Clash(tunnel, own, Rule.PARENT)


def _inside(network: IPNetwork, private: IPNetwork) -> bool:
    return network.version == private.version and network.overlaps(private)


def _circles(clusters: Mapping[str, Cluster]) -> Iterator[str]:
    done: set[str] = set()
    for name in clusters:
        path: dict[str, None] = {}
        while name and name in clusters and name not in done and name not in path:
            path[name] = None
            name = clusters[name].seed
        if name in path:
            yield f"{' <- '.join([*path, name])}: a seed cannot be its own ancestor"
        done.update(path)
