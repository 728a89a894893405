"""Parts, and who gets them."""

from ipaddress import ip_address, ip_network

import pytest

from agent.model import IPNetwork
from agent.pulse import Standing
from seed_server.assignment import Assignment, parts, parts_within

RANGE = ip_network("100.64.0.0/13")
V6 = ip_network("fd00:96::/112")
WELL, UNPROVEN, LOST = Standing.WELL, Standing.UNPROVEN, Standing.LOST


def filled(*names: str, standing: Standing = WELL, ranges: tuple[IPNetwork, ...] = (RANGE,)) -> Assignment:
    assignment = Assignment(ranges)
    for name in names:
        assignment.put(name, ranges, standing)
    return assignment


def test_a_range_is_always_cut_into_the_same_parts() -> None:
    assert len(parts(RANGE)) == 32 and parts(RANGE)[0] == ip_network("100.64.0.0/18")
    assert [str(p) for p in parts(ip_network("10.0.0.0/30"))] == [
        "10.0.0.0/32",
        "10.0.0.1/32",
        "10.0.0.2/32",
        "10.0.0.3/32",
    ]
    assert parts_within(RANGE, ip_network("100.64.0.0/17")) == parts(RANGE)[:2]
    assert parts_within(RANGE, ip_network("100.64.0.0/19")) == ()


def test_parts_are_spread_over_all_who_are_well() -> None:
    assignment = filled("a", "b", "c", ranges=(RANGE, V6))
    assert set(assignment.owners) == {*parts(RANGE), *parts(V6)}
    shares = [len(assignment.held(name)) for name in "abc"]
    assert sum(shares) == 64 and min(shares) >= 10


def test_a_part_goes_only_to_those_who_offer_it() -> None:
    assignment = Assignment((RANGE,))
    assignment.put("small", (ip_network("100.64.0.0/17"),), WELL)
    assert assignment.held("small") == parts(RANGE)[:2]
    assignment.put("other", (ip_network("100.68.0.0/14"),), WELL)
    assert assignment.held("small") == parts(RANGE)[:2] and len(assignment.held("other")) == 16
    assignment.put("small", (), WELL)
    assert assignment.held("small") == ()


def test_who_is_well_comes_before_who_is_new_and_that_one_before_who_is_lost() -> None:
    assignment = filled("a")
    assignment.put("b", (RANGE,), UNPROVEN)
    assert not assignment.held("b")
    assignment.put("a", (RANGE,), LOST)
    assert len(assignment.held("b")) == 32
    assignment.put("a", (RANGE,), UNPROVEN)
    assert len(assignment.held("b")) == 32, "among equals that are not well, everything stays"
    assignment.put("b", (RANGE,), LOST)
    assignment.put("a", (RANGE,), LOST)
    assert len(assignment.held("a")) == 32, "a bad owner is better than none, and the last one as good as any other"
    assert assignment.drop("a") and len(assignment.held("b")) == 32
    assert all(move.after is None for move in assignment.drop("b")) and not assignment.owners


def test_what_is_reserved_is_given_to_nobody_until_it_is_released() -> None:
    assignment = Assignment((RANGE,))
    assignment.reserve("expected", [ip_network("100.64.0.0/14")])
    assignment.put("a", (RANGE,), WELL)
    assert len(assignment.held("a")) == 16
    assert len(assignment.release("expected")) == 16 and len(assignment.held("a")) == 32
    assert assignment.release("expected") == []


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("100.64.0.1", "100.64.0.0/18"),
        ("100.71.255.255", "100.71.192.0/18"),
        ("fd00:96::1", "fd00:96::/117"),
        ("1.2.3.4", None),
    ],
)
def test_an_address_is_in_the_smallest_part_around_it(address: str, part: str | None) -> None:
    found = filled("a", ranges=(ip_network("100.64.0.0/10"), RANGE, V6)).part_of(ip_address(address))
    assert str(found) == str(part)
    assert filled().part_of(ip_address("100.64.0.1")) is None
