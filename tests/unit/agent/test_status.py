"""The status value: JSON and back, also between versions."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.status import (
    Counters,
    EgressHealth,
    PathHealth,
    PeerHealth,
    RangeHealth,
    RoleStatus,
    Verdict,
    from_json,
    to_json,
)

TEXT = st.text(max_size=5)
AGE = st.none() | st.floats(0, 1e6)
COUNTS = st.dictionaries(TEXT, st.integers(0, 2**63), max_size=3).map(lambda d: tuple(d.items()))
TEXTS = st.lists(TEXT, max_size=3).map(tuple)


def tuples(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=2).map(tuple)


PATH = st.builds(PathHealth, TEXT, TEXT, TEXT, TEXT, AGE, AGE, st.none() | st.integers(0, 9000), drops=COUNTS)
PEER = st.builds(PeerHealth, TEXT, TEXTS, TEXTS, TEXT, AGE, AGE, AGE, refused=TEXTS, standing=TEXT, reason=TEXT)
STATUS = st.builds(
    RoleStatus,
    *(TEXT, TEXT, TEXT, st.sampled_from(Verdict), TEXT, st.floats(0, 1e6), TEXTS),
    paths=tuples(PATH),
    peers=tuples(PEER),
    ranges=tuples(st.builds(RangeHealth, TEXT, TEXT, TEXT)),
    counters=st.builds(Counters, COUNTS, COUNTS, COUNTS, st.integers(0, 9), COUNTS),
    grant_expires_in_s=AGE,
    egress=st.none() | st.builds(EgressHealth, TEXTS, st.integers(0, 9), dials=COUNTS, last_failure=TEXT),
)


@settings(max_examples=30, deadline=None)
@given(STATUS)
def test_json_and_back(status: RoleStatus) -> None:
    assert from_json(json.loads(json.dumps(to_json(status)))) == status


def test_every_field_is_there_and_counts_are_objects_even_when_empty() -> None:
    status = RoleStatus("seed-server", "a", "rz0", Verdict.UP, "fine", 1.0, paths=(PathHealth("stream", "x", "up"),))
    data = to_json(status)
    assert set(data) == {field.name for field in dataclasses.fields(RoleStatus)}
    assert data["verdict"] == "UP" and data["peers"] == []
    assert data["counters"] == {
        "refused": {},
        "turned_away": {},
        "repairs": {},
        "reconnects": 0,
        "failovers": {},
        "moves": 0,
        "path_moves": 0,
        "conflicts": 0,
        "rotations": {},
        "not_let_in": {},
    }
    assert data["paths"][0]["drops"] == {}


def test_a_newer_and_an_older_daemon_are_understood() -> None:
    data = {"role": "r", "control_plane": "a", "ifname": "i", "verdict": "UP", "sentence": "s", "since_s": 1, "new": {}}
    data["peers"] = [{"name": "n", "colour": "red"}]
    assert from_json(data).peers == (PeerHealth("n"),)


FULL = to_json(RoleStatus("r", "a", "i", Verdict.UP, "s", 1.0))


@pytest.mark.parametrize(
    "data",
    [None, [], "x", 1, {}, {"role": "r"}, FULL | {"verdict": "MAYBE"}, FULL | {"paths": [1]}, FULL | {"counters": 3}],
)
def test_what_is_no_status(data: Any) -> None:
    with pytest.raises(ValueError, match=r"not a status|not a valid Verdict"):
        from_json(data)
