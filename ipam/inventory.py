"""One pool out of several: those whose labels fit and that have room, the least used first; and why each of the others was not taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stock:
    """A pool as the inventory sees it. `capacity` may be less than its addresses: a provider's limit of 255 endpoints."""

    name: str
    capacity: int
    used: int
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return max(0, self.capacity - self.used)

    @property
    def share(self) -> float:
        return self.used / self.capacity if self.capacity else 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """`chosen` is None when nothing fits. `rejected`: every other candidate and why it is not the one."""

    chosen: Stock | None
    rejected: tuple[tuple[Stock, str], ...]


def choose(stocks: Iterable[Stock], labels: Mapping[str, str], count: int = 1) -> Choice:
    """The least used pool with all these labels and room for `count` more; of equals the first by name."""
    fitting: list[Stock] = []
    rejected: list[tuple[Stock, str]] = []
    for stock in stocks:
        wrong = [
            f"{key} is {stock.labels.get(key, 'not set')}" for key in labels if stock.labels.get(key) != labels[key]
        ]
        if wrong:
            rejected.append((stock, f"{', '.join(wrong)}; wanted {words(labels)}"))
        elif stock.free < count:
            rejected.append((stock, f"{stock.used} of {stock.capacity} in use, {stock.free} free; wanted {count}"))
        else:
            fitting.append(stock)
    fitting.sort(key=lambda stock: (stock.share, stock.name))
    rejected += [(s, f"{s.share:.0%} in use; {fitting[0].name} is at {fitting[0].share:.0%}") for s in fitting[1:]]
    return Choice(fitting[0] if fitting else None, tuple(rejected))


def words(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items()) or "any"
