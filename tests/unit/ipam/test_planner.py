import itertools
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.inventory import Stock, choose
from ipam.networks import Cluster, Plan, Range, Use
from ipam.planner import EXACT_MAX, Way, changes, pack, pair, pairs


def ranges(name: str, **networks: str) -> tuple[Range, ...]:
    return tuple(
        Range(ip_network(text), Use(use), name, f"{name}.{use}[{n}]")
        for use, texts in networks.items()
        for n, text in enumerate(texts.split())
    )


def shoot(name: str, seed: str = "s", **networks: str) -> Cluster:
    return Cluster(name, seed, ranges(name, **networks))


def seed(name: str = "s", parent: str = "", tunnel: str = "192.168.128.0/17", **networks: str) -> Cluster:
    return Cluster(name, parent, ranges(name, **networks), ranges(name, tunnel=tunnel))


def way(ours: Cluster, theirs: Cluster) -> tuple[Way, str]:
    found = pair(Plan.of([ours, theirs]), ours, theirs)
    return found.way, "; ".join([*map(str, found.mapped), *found.reasons])


def test_direct_mapped_and_impossible() -> None:
    ours = seed(pods="10.0.0.0/16", nodes="10.9.0.0/16")
    assert way(ours, shoot("a", pods="10.1.0.0/16")) == (Way.DIRECT, "")
    assert way(ours, shoot("a", pods="10.0.0.0/14", nodes="10.0.0.0/24"))[0] is Way.IMPOSSIBLE  # in itself
    kind, text = way(ours, shoot("a", pods="10.0.0.0/17", nodes="10.9.7.0/24 10.9.0.0/22"))
    assert kind is Way.MAPPED
    assert text == (
        "s pods 10.0.0.0/16 as 241.0.0.0/16; s nodes 10.9.0.0/16 as 245.0.0.0/16; "
        "a nodes 10.9.0.0/22 as 242.0.0.0/22; a nodes 10.9.7.0/24 as 242.0.4.0/24; a pods 10.0.0.0/17 as 244.0.0.0/17"
    )
    kind, text = way(ours, shoot("a", pods="192.168.128.0/24"))
    assert kind is Way.IMPOSSIBLE and "tunnel 192.168.128.0/17 of s" in text


def test_what_does_not_fit_into_its_eighth() -> None:
    kind, text = way(seed(pods="10.0.0.0/8"), shoot("a", nodes="10.0.0.0/8", pods="11.0.0.0/8"))
    assert kind is Way.MAPPED
    kind, text = way(seed(pods="10.0.0.0/7"), shoot("a", nodes="10.0.0.0/8"))
    assert kind is Way.IMPOSSIBLE
    assert text == "the pods of s (10.0.0.0/7) do not fit into 241.0.0.0/8, where they would be mapped"


def test_ranges_are_packed_without_overlap_each_aligned() -> None:
    items = ranges("a", pods="10.0.0.0/24 10.1.0.0/12 10.64.0.0/10 10.2.3.4/32".replace("10.1.0.0", "10.16.0.0"))
    packed, error = pack(items, ip_network("244.0.0.0/8"))
    assert not error
    assert [m.block.prefixlen for m in packed] == [m.item.network.prefixlen for m in packed]
    for one, other in itertools.combinations(packed, 2):
        assert not one.block.overlaps(other.block)


def test_a_shoot_without_a_seed_is_looked_at_on_every_seed() -> None:
    plan = Plan.of([seed("s"), seed("t", pods="10.0.0.0/8"), shoot("a", "", pods="10.0.0.0/16"), shoot("b", "s")])
    assert [(p.seed, p.shoot, p.way) for p in pairs(plan)] == [
        ("s", "a", Way.DIRECT),
        ("t", "a", Way.MAPPED),
        ("s", "b", Way.DIRECT),
    ]
    assert len(list(pairs(plan, everywhere=True))) == 4


def test_one_change_that_helps_many() -> None:
    shoots = [shoot(f"a{n}", pods=f"fd01:0:0:{n}::/64") for n in range(8)]
    plan = Plan.of([seed(pods="fd01::/48"), *shoots])
    (change,), exact = changes(plan)
    assert (change.old.of, str(change.proposal), exact) == ("s", "fd00::/48", True)
    assert str(change) == "pods fd01::/48 of s (s.pods[0]): take fd00::/48"


def test_of_equally_few_changes_those_of_the_shoot() -> None:
    ((change,), _) = changes(Plan.of([seed(pods="fd01::/48"), shoot("a", pods="fd01::/48")]))
    assert change.old.of == "a"


def test_a_reserved_range_is_never_what_changes() -> None:
    ((change,), _) = changes(Plan.of([seed(), shoot("a", pods="240.0.0.0/16 10.0.0.0/8")]))
    assert str(change.old.network) == "240.0.0.0/16"


def test_what_can_be_mapped_is_left_unless_mapping_is_not_wanted() -> None:
    plan = Plan.of([seed(pods="10.0.0.0/16"), shoot("a", pods="10.0.0.0/16")])
    assert changes(plan) == ((), True)
    ((change,), _) = changes(plan, mapping=False)
    assert str(change.proposal) == "10.1.0.0/16"
    wide = Plan.of([seed(pods="10.0.0.0/7"), shoot("a", pods="10.0.0.0/16")])
    assert len(changes(wide)[0]) == 1


def test_a_large_tangle_is_solved_and_said_not_to_be_exact() -> None:
    texts = " ".join(["fd01::/64"] * (EXACT_MAX + 2))
    chosen, exact = changes(Plan.of([shoot("a", "", pods=texts)]))
    assert len(chosen) >= EXACT_MAX
    assert not exact


blocks = st.sampled_from(["fd01::/48", "fd01::/49", "fd01:0:0:8000::/49", "fd02::/48", "fd01::/47", "240.1.0.0/16"])


@settings(deadline=None, max_examples=60)
@given(st.lists(blocks, min_size=1, max_size=3), st.lists(st.lists(blocks, min_size=1, max_size=2), max_size=3))
def test_the_changes_help_and_fewer_do_not(ours: list[str], theirs: list[list[str]]) -> None:
    clusters = [seed(pods=" ".join(ours)), *(shoot(f"a{n}", nodes=" ".join(t)) for n, t in enumerate(theirs))]
    plan = Plan.of(clusters)
    made, exact = changes(plan)
    assert exact
    clashing = list(plan.clashes())
    everything = [r for c in clusters for r in c.everything]

    def helps(gone: set[Range]) -> bool:
        return all(clash.one in gone or clash.other in gone for clash in clashing)

    assert helps({change.old for change in made})
    for size in range(len(made)):
        assert not any(helps(set(gone)) for gone in itertools.combinations(everything, size))
    renamed = {change.old: change.proposal for change in made}
    after = [
        Cluster(
            c.name,
            c.seed,
            tuple(Range(renamed.get(r) or r.network, r.use, r.of, r.source) for r in c.ranges),
            c.tunnels,
        )
        for c in clusters
    ]
    assert not list(Plan.of(after).clashes())


STOCKS = [
    Stock("a", 255, 250, {"region": "eu"}),
    Stock("b", 255, 17, {"region": "eu"}),
    Stock("c", 255, 3, {"region": "us"}),
    Stock("d", 1000, 100, {"region": "eu", "tier": "gold"}),
]


def test_the_least_used_pool_that_fits_and_why_not_the_others() -> None:
    choice = choose(STOCKS, {"region": "eu"}, 6)
    assert choice.chosen is STOCKS[1]
    assert {stock.name: why for stock, why in choice.rejected} == {
        "a": "250 of 255 in use, 5 free; wanted 6",
        "c": "region is us; wanted region=eu",
        "d": "10% in use; b is at 7%",
    }


def test_no_pool_fits() -> None:
    choice = choose(STOCKS, {"tier": "gold", "region": "us"})
    assert choice.chosen is None
    assert {stock.name: why for stock, why in choice.rejected}["d"] == "region is eu; wanted tier=gold, region=us"
    assert len(choice.rejected) == 4


@pytest.mark.parametrize("count", [238, 239])
def test_room_is_counted_to_the_last_place(count: int) -> None:
    assert (choose(STOCKS[1:2], {}, count).chosen is None) == (count == 239)
