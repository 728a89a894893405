import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.codec import decode, encode
from ipam.model import Allocation, Block, Owner, block_of

words = st.text(max_size=8)
times = st.floats(allow_nan=False, allow_infinity=False)
blocks = st.one_of(
    st.builds(lambda length, n: Block(4, length, n % (1 << length)), st.integers(0, 32), st.integers(0)),
    st.builds(lambda length, n: Block(6, length, n % (1 << length)), st.integers(0, 128), st.integers(0)),
)
allocations = st.builds(
    Allocation,
    st.builds(Owner, words, words, words, words),
    st.lists(blocks, max_size=3).map(tuple),
    st.integers(0, 1 << 62),
    times,
    st.none() | times,
    st.none() | times,
)


@settings(deadline=None)
@given(allocations)
def test_there_and_back(allocation: Allocation) -> None:
    assert decode(json.loads(json.dumps(encode(allocation)))) == allocation


def test_what_it_looks_like() -> None:
    allocation = Allocation(Owner("k", "ns", "n", "u"), (block_of("10.0.0.8"), block_of("fd00::/64")), 7, 1.5)
    assert encode(allocation) == {
        "owner": {"kind": "k", "namespace": "ns", "name": "n", "uid": "u"},
        "addresses": ["10.0.0.8", "fd00::/64"],
        "generation": 7,
        "since": 1.5,
    }


def test_unknown_fields_are_ignored() -> None:
    allocation = Allocation(Owner("k", "ns", "n", "u"), (), 7, 1.5)
    assert decode({**encode(allocation), "colour": "blue"}) == allocation


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    allocations, st.sampled_from(["owner", "addresses", "generation", "since", "expires", "rests_until"]), json_values
)
def test_nonsense_is_a_value_error_or_a_value(allocation: Allocation, key: str, value: object) -> None:
    with suppress(ValueError):
        assert isinstance(decode({**encode(allocation), key: value}), Allocation)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="uid"):
        decode({"owner": {"kind": "k", "namespace": "ns", "name": "n"}})
