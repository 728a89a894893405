import time
from ipaddress import IPv4Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.networks import RESERVED, Cluster, Plan, Problem, Range, Rule, Use, between


def ranges(name: str, **networks: str) -> tuple[Range, ...]:
    """nodes="10.0.0.0/16 10.1.0.0/16" and so on."""
    return tuple(
        Range(ip_network(text), Use(use), name, f"{name}.{use}[{n}]")
        for use, texts in networks.items()
        for n, text in enumerate(texts.split())
    )


def shoot(name: str, seed: str = "s", **networks: str) -> Cluster:
    return Cluster(name, seed, ranges(name, **networks))


def seed(name: str, parent: str = "", tunnel: str = "192.168.128.0/17", **networks: str) -> Cluster:
    return Cluster(name, parent, ranges(name, **networks), ranges(name, tunnel=tunnel))


def problems(*clusters: Cluster) -> list[Problem]:
    return list(Plan.of(clusters).problems())


GOOD = {"nodes": "10.240.0.0/16", "pods": "100.64.0.0/12", "services": "100.80.0.0/16"}


def test_a_plan_that_works() -> None:
    assert (
        problems(seed("s", **GOOD), shoot("a", nodes="10.250.0.0/16", pods="100.96.0.0/11", services="fd00::/108"))
        == []
    )


@pytest.mark.parametrize("ours", ["nodes", "pods", "services"])
@pytest.mark.parametrize("theirs", ["nodes", "pods", "services"])
def test_any_range_of_the_seed_against_any_of_the_shoot(ours: str, theirs: str) -> None:
    """The shoot's nodes against the seed's pods, too: answers of the seed's pods once went into the tunnel."""
    (found,) = problems(seed("s", **{ours: "10.1.0.0/16"}), shoot("a", **{theirs: "10.1.128.0/20"}))
    assert found.clash.rule is Rule.SEED_AND_SHOOT
    assert found.clash.mappable
    assert str(found) == (
        f"{ours} 10.1.0.0/16 of s (s.{ours}[0]) overlaps {theirs} 10.1.128.0/20 of a (a.{theirs}[0]): "
        f"a seed's ranges and its shoot's have to be disjoint; 10.0.0.0/20 is free for {theirs} of a"
    )


def test_ipv6_cannot_be_mapped() -> None:
    (found,) = problems(seed("s", pods="fd01::/48"), shoot("a", pods="fd01::/56"))
    assert not found.clash.mappable
    assert str(found.proposal) == "fd00::/56"


@pytest.mark.parametrize("taken", RESERVED, ids=str)
def test_no_cluster_may_use_a_reserved_range(taken: Range) -> None:
    for use in ("nodes", "pods", "services"):
        found = problems(shoot("a", seed="", **{use: str(taken.network)}))
        assert [problem.clash.rule for problem in found] == [Rule.RESERVED]
        assert found[0].move.of == "a"
        assert str(taken.network) in str(found[0]) and taken.of in str(found[0])


def test_tunnels_may_use_what_is_reserved_for_them_and_nothing_else() -> None:
    assert problems(seed("s", tunnel="192.168.128.0/20 fd8f:6d53:b97a:1::/96")) == []
    (found,) = problems(seed("s", tunnel="192.168.123.0/24"))
    assert str(found.proposal) == "192.168.0.0/24"


def test_the_ranges_of_one_cluster() -> None:
    (found,) = problems(shoot("a", seed="", nodes="10.0.0.0/16", pods="10.0.0.0/12"))
    assert found.clash.rule is Rule.ONE_CLUSTER
    assert str(found.proposal) == "10.16.0.0/12"
    (found,) = problems(seed("s", tunnel="10.0.0.0/24", nodes="10.0.0.0/16"))
    assert found.clash.rule is Rule.TUNNEL


def test_a_shoot_and_the_tunnel_of_its_seed() -> None:
    (found,) = problems(seed("s", tunnel="10.66.0.0/17"), shoot("a", nodes="10.66.3.0/24"))
    assert found.clash.rule is Rule.TUNNEL and not found.clash.mappable


def test_parents_siblings_and_grandparents() -> None:
    root, child = seed("root"), seed("child", "root", tunnel="10.66.0.0/17")
    assert problems(root, child, seed("sibling", "root", tunnel="10.66.0.0/17"), seed("grandchild", "child")) == []
    (found,) = problems(root, seed("child", "root", tunnel="192.168.200.0/24"))
    assert found.clash.rule is Rule.PARENT
    assert str(found) == (
        "tunnel 192.168.128.0/17 of root (root.tunnel[0]) overlaps tunnel 192.168.200.0/24 of child (child.tunnel[0]): "
        "a child seed's tunnel network has to differ from its parent's; 192.168.0.0/24 is free for tunnel of child"
    )


def test_names_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="two clusters are called 's'") as caught:
        Plan.of([seed("s"), seed("s"), shoot("a", "x"), shoot("b", "a"), seed("p", "q"), seed("q", "p")])
    text = str(caught.value)
    assert "a: its seed 'x' is not in the plan" in text
    assert "b: 'a' is no seed" in text
    assert "p <- q <- p: a seed cannot be its own ancestor" in text


def test_nothing_of_that_size_is_free() -> None:
    (found,) = problems(shoot("a", seed="", nodes="10.0.0.0/8", pods="10.0.0.0/8"))
    assert found.proposal is None
    assert str(found).endswith("no private network of that size is free")


small = st.builds(lambda third, length: str(IPv4Network((0x0A000000 | third << 8, length), strict=False)),
                  st.integers(0, 7), st.integers(21, 24))  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 30), small), min_size=1, max_size=8))
def test_a_tree_is_accepted_if_and_only_if_no_child_is_like_its_parent(nodes: list[tuple[int, str]]) -> None:
    clusters = [
        seed(f"s{n}", f"s{parent % n}" if n and parent % 3 else "", tunnel=tunnel)
        for n, (parent, tunnel) in enumerate(nodes)
    ]
    tunnels = {cluster.name: cluster.tunnels[0].network for cluster in clusters}
    wrong = {c.name for c in clusters if c.seed and tunnels[c.name].overlaps(tunnels[c.seed])}
    found = problems(*clusters)
    assert {problem.move.of for problem in found} == wrong
    for problem in found:  # each proposal, taken alone, leaves all others as they are
        changed = [seed(c.name, c.seed, str(problem.proposal)) if c.name == problem.move.of else c for c in clusters]
        assert len(problems(*changed)) < len(found)


def test_ten_thousand_seeds_cost_no_pair_by_pair() -> None:
    """The benchmark ipam demands a second of a quiet machine; 50 million pairs would take far more than this of any."""
    clusters = [seed("s0", **GOOD)]
    for n in range(1, 10_000):
        third = n % 250
        tunnel = f"10.{66 + n.bit_length() % 2}.0.0/17"
        clusters.append(
            seed(f"s{n}", f"s{n // 2 if n > 1 else 0}", tunnel, nodes=f"172.{16 + n.bit_length() % 2}.{third}.0/24")
        )
    plan = Plan.of(clusters)
    began = time.process_time()
    assert list(plan.clashes()) == []
    assert time.process_time() - began < 5.0


def test_between_names_the_seeds_range_first() -> None:
    (clash,) = between(seed("s", pods="10.0.0.0/8"), shoot("a", nodes="10.0.0.0/8"))
    assert (clash.one.of, clash.other.of) == ("s", "a")
