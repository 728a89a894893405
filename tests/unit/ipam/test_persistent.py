import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.persistent import Heap, Map


class Colliding(int):
    """All of these fall into the same small dict of a map."""

    def __hash__(self) -> int:
        return 7


# No number is in both kinds: equal keys have equal hashes.
keys = st.integers(0, 40).map(Colliding) | st.integers(41, 1 << 70) | st.text(max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), keys, st.integers())))
def test_map_is_a_dict_with_versions(operations: list[tuple[bool, object, int]]) -> None:
    versions: list[tuple[Map[object, int], dict[object, int]]] = [(Map(), {})]
    for is_set, key, value in operations:
        before, model = versions[-1]
        model = dict(model)
        if is_set:
            model[key] = value
        else:
            model.pop(key, None)
        versions.append((before.set(key, value) if is_set else before.discard(key), model))
    for version, model in versions:
        assert dict(version.items()) == model
        assert len(version) == len(model)
        assert all(version.get(key) == value for key, value in model.items())
        assert dict(Map.of(model.items()).items()) == model
    first, last = random.Random(len(operations)).choice(versions), versions[-1]
    put, gone = last[0].changes_since(first[0])
    assert {**{k: v for k, v in first[1].items() if k not in gone}, **put} == last[1]
    assert all(first[1].get(k, None) != v for k, v in put.items())


def test_map_says_nothing_about_what_two_versions_share() -> None:
    old = Map.of((n, n) for n in range(60_000))
    put, gone = old.set(60_001, 1).discard(77).changes_since(old)
    assert (put, gone) == ({60_001: 1}, [77])


def test_discard_of_a_missing_key_is_the_same_map() -> None:
    old = Map.of([(1, "a")])
    assert old.discard(2) is old
    assert old.get(2) is None


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(), st.none())), st.lists(st.integers()))
def test_heap_gives_the_smallest_first(operations: list[int | None], start: list[int]) -> None:
    """An integer is pushed, None pops."""
    heap, model = Heap.of(start), sorted(start)
    for operation in operations:
        if operation is not None:
            heap, model = heap.push(operation), sorted([*model, operation])
        elif model:
            heap, model = heap.pop(), model[1:]
        assert heap.peek() == (model[0] if model else None)
        assert len(heap) == len(model)
    drained = []
    while heap:
        drained.append(heap.peek())
        heap = heap.pop()
    assert drained == model


def test_pop_from_nothing() -> None:
    with pytest.raises(IndexError):
        Heap().pop()


def test_a_heap_of_many_needs_no_deep_recursion() -> None:
    heap: Heap[int] = Heap()
    for n in range(50_000):
        heap = heap.push(n)
    for n in range(5):
        assert heap.peek() == n
        heap = heap.pop()
    heap = Heap.of(range(50_000))
    assert heap.pop().peek() == 1
