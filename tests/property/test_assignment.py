"""Whatever comes and goes: one owner per part, as few moves as can be, and the same outcome in any order."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import IPNetwork
from agent.pulse import Standing
from seed_server.assignment import Assignment, Move, parts

RANGES = (ip_network("100.64.0.0/13"), ip_network("fd00:96::/112"))
NAMES = [f"spiffe://cp/node-{n}" for n in range(8)]
Offers = tuple[IPNetwork, ...]
Change = tuple[str, Standing | None, Offers]
OFFERS: list[Offers] = [(), RANGES, RANGES[:1], (ip_network("100.64.0.0/14"), RANGES[1])]

changes = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([None, *Standing]), st.sampled_from(OFFERS)), max_size=30
)


def do(assignment: Assignment, name: str, standing: Standing | None, offers: Offers) -> list[Move]:
    if standing is None:
        return assignment.drop(name)
    return assignment.put(name, offers, standing)


@settings(max_examples=60)
@given(changes)
def test_every_part_that_is_offered_has_one_owner_and_only_moves_that_were_told_happen(history: list[Change]) -> None:
    assignment = Assignment(RANGES)
    told: dict[IPNetwork, str] = {}
    state: dict[str, tuple[Standing | None, Offers]] = {}
    for name, standing, offers in history:
        state[name] = (standing, offers)
        for move in do(assignment, name, standing, offers):
            assert told.pop(move.part, None) == move.before
            if move.after is not None:
                told[move.part] = move.after
    assert told == dict(assignment.owners)
    assert {n: set(assignment.held(n)) for n in NAMES} == {n: {p for p, o in told.items() if o == n} for n in NAMES}
    for part in (part for network in RANGES for part in parts(network)):
        bids = {
            n: s
            for n, (s, offers) in state.items()
            if s is not None and any(o.version == part.version and part.subnet_of(o) for o in offers)  # type: ignore[arg-type]
        }
        owner = told.get(part)
        assert (owner is None) == (not bids)
        if owner is not None:
            assert bids[owner] == max(bids.values()), "nobody stands higher than the owner"


@settings(max_examples=40)
@given(st.permutations(NAMES), st.permutations(NAMES))
def test_among_clients_that_are_well_the_order_in_which_they_came_does_not_matter(
    one: list[str], other: list[str]
) -> None:
    owners = []
    for order in (one, other):
        assignment = Assignment(RANGES)
        for name in order:
            assignment.put(name, RANGES, Standing.UNPROVEN)
            assignment.put(name, RANGES, Standing.WELL)
        owners.append(dict(assignment.owners))
    assert owners[0] == owners[1]


@settings(max_examples=40)
@given(st.sets(st.sampled_from(NAMES), min_size=2), st.data())
def test_one_that_is_lost_moves_its_own_parts_only_and_takes_back_only_those(
    names: set[str], data: st.DataObject
) -> None:
    assignment = Assignment(RANGES)
    for name in sorted(names):
        assignment.put(name, RANGES, Standing.WELL)
    before = dict(assignment.owners)
    lost = data.draw(st.sampled_from(sorted(names)))
    moved = assignment.put(lost, RANGES, Standing.LOST)
    assert {m.part for m in moved} == {p for p, o in before.items() if o == lost} and all(
        m.after != lost for m in moved
    )
    back = assignment.put(lost, RANGES, Standing.WELL)
    assert all(m.after == lost for m in back) and dict(assignment.owners) == before
