"""One owner per prefix, few moves."""

from agent.model import networks
from seed_server.assignment import assign

PREFIXES = networks([f"10.{i}.0.0/16" for i in range(64)])


def test_every_prefix_has_one_owner_among_those_that_offered_it() -> None:
    owners = assign({"a": PREFIXES[:40], "b": PREFIXES[20:]})
    assert set(owners) == set(PREFIXES)
    assert all(owners[p] == "a" for p in PREFIXES[:20])
    assert all(owners[p] == "b" for p in PREFIXES[40:])


def test_the_order_of_the_clients_does_not_matter() -> None:
    assert assign({"a": PREFIXES, "b": PREFIXES}) == assign({"b": PREFIXES, "a": PREFIXES})


def test_a_client_that_leaves_moves_only_what_it_held() -> None:
    before = assign(dict.fromkeys("abcd", PREFIXES))
    after = assign(dict.fromkeys("abc", PREFIXES))
    assert {before[p] for p in PREFIXES} == set("abcd")
    assert all(after[p] == before[p] for p in PREFIXES if before[p] != "d")
