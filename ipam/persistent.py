"""Two immutable containers whose new versions share almost everything with the old ones: a hash map and a priority queue.

They make a ledger of 60,000 allocations a plain value: changing one entry costs microseconds, the old version stays valid,
and two versions of a map are compared by looking only at what they do not share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_BITS = 6
_FAN = 1 << _BITS
_MASK = _FAN - 1

_Leaf = dict[K, V]
_Branch = tuple[_Leaf[K, V] | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Map(Generic[K, V]):
    """An immutable mapping. Two levels of 64 branches stand over small dicts: 15 entries in each for 60,000 keys, 256 for
    a million, so that a change copies two short tuples and one small dict, and nothing is ever rebuilt."""

    _root: tuple[_Branch[K, V] | None, ...] = (None,) * _FAN
    _size: int = 0

    @classmethod
    def of(cls, items: Iterable[tuple[K, V]]) -> Map[K, V]:
        """The same as `set` for every item, without the versions between."""
        leaves: dict[int, _Leaf[K, V]] = {}
        for key, value in items:
            leaves.setdefault(hash(key) & (_FAN * _FAN - 1), {})[key] = value
        root = (
            tuple(leaves.get(low | high << _BITS) for high in range(_FAN)) if leaves else None for low in range(_FAN)
        )
        return cls(tuple(root), sum(map(len, leaves.values())))

    def _leaf(self, key: K) -> _Leaf[K, V] | None:
        code = hash(key)
        branch = self._root[code & _MASK]
        return branch[code >> _BITS & _MASK] if branch is not None else None

    def get(self, key: K) -> V | None:
        leaf = self._leaf(key)
        return leaf.get(key) if leaf is not None else None

    def set(self, key: K, value: V) -> Map[K, V]:
        leaf = dict(self._leaf(key) or ())
        leaf[key] = value
        return self._with_leaf(key, leaf)

    def discard(self, key: K) -> Map[K, V]:
        """Without the key; the same object when it was not there."""
        leaf = self._leaf(key)
        if leaf is None or key not in leaf:
            return self
        return self._with_leaf(key, {k: v for k, v in leaf.items() if k != key})

    def _with_leaf(self, key: K, leaf: _Leaf[K, V]) -> Map[K, V]:
        code = hash(key)
        low, high = code & _MASK, code >> _BITS & _MASK
        old = self._root[low]
        branch: list[_Leaf[K, V] | None] = list(old) if old is not None else [None] * _FAN
        before = branch[high]
        branch[high] = leaf or None
        root = list(self._root)
        root[low] = tuple(branch)
        return Map(tuple(root), self._size + len(leaf) - (len(before) if before is not None else 0))

    def __len__(self) -> int:
        return self._size

    def items(self) -> Iterator[tuple[K, V]]:
        for branch in self._root:
            for leaf in branch or ():
                if leaf is not None:
                    yield from leaf.items()

    def changes_since(self, old: Map[K, V]) -> tuple[dict[K, V], list[K]]:
        """What to set and what to discard to turn `old` into this map. Costs what differs, not what is there."""
        put: dict[K, V] = {}
        gone: list[K] = []
        nothing: _Leaf[K, V] = {}
        for branch, old_branch in zip(self._root, old._root, strict=True):
            if branch is old_branch:
                continue
            pairs = zip(branch or (None,) * _FAN, old_branch or (None,) * _FAN, strict=True)
            for leaf, old_leaf in ((a or nothing, b or nothing) for a, b in pairs if a is not b):
                put.update((k, v) for k, v in leaf.items() if k not in old_leaf or old_leaf[k] != v)
                gone += [k for k in old_leaf if k not in leaf]
        return put, gone


# A node is (entry, children); children are a chain of pairs (node, rest) that ends in None.
_Node = tuple[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Heap(Generic[T]):
    """An immutable priority queue, smallest entry first: a pairing heap (Fredman, Sedgewick, Sleator, Tarjan 1986).
    `push` is constant, `pop` is O(log n) amortised."""

    _root: _Node | None = None
    _size: int = 0

    @classmethod
    def of(cls, entries: Iterable[T]) -> Heap[T]:
        root: _Node | None = None
        size = 0
        for entry in sorted(entries, reverse=True):  # type: ignore[type-var]
            root = (entry, None if root is None else (root, None))
            size += 1
        return cls(root, size)

    def __len__(self) -> int:
        return self._size

    def push(self, entry: T) -> Heap[T]:
        return Heap(_merged(self._root, (entry, None)), self._size + 1)

    def peek(self) -> T | None:
        return self._root[0] if self._root is not None else None

    def pop(self) -> Heap[T]:
        """Without its smallest entry. Raises IndexError when there is none."""
        if self._root is None:
            raise IndexError("pop from an empty heap")
        pairs: list[_Node | None] = []
        children = self._root[1]
        while children is not None:
            first, children = children
            second = None
            if children is not None:
                second, children = children
            pairs.append(_merged(first, second))
        root: _Node | None = None
        while pairs:
            root = _merged(root, pairs.pop())
        return Heap(root, self._size - 1)


def _merged(a: _Node | None, b: _Node | None) -> _Node | None:
    if a is None or b is None:
        return a if b is None else b
    if b[0] < a[0]:
        a, b = b, a
    return (a[0], (b, a[1]))
