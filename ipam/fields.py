"""Reading a document (TOML, YAML, JSON) that people wrote: every problem is collected, with the place where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from typing import Any

from agent.model import IPNetwork
from agent.settings import nearest

_MISSING = object()


class Fields:
    """A mapping out of a document. What is read is checked; what was never asked for is a problem when `close` is called."""

    def __init__(self, value: Any, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        self._asked: set[str] = set()
        self._value: Mapping[str, Any] = {}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            self._value = value
        else:
            self.complain("", "has to be a table of names and values")

    def complain(self, name: str, problem: str) -> None:
        self.problems.append(f"{'.'.join(filter(None, (self.where, name))) or 'the document'}: {problem}")

    def _take(self, name: str) -> Any:
        self._asked.add(name)
        value = self._value.get(name)
        return _MISSING if value is None else value

    def text(self, name: str, default: str | None = "") -> str:
        """`default` None: it has to be there."""
        value = self._take(name)
        if value is _MISSING:
            if default is None:
                self.complain(name, "is missing")
            return default or ""
        if not isinstance(value, str) or not value.isprintable():
            self.complain(name, "has to be text")
            return default or ""
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self._take(name)
        if value is _MISSING:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.complain(name, f"has to be a whole number from {low} to {high}")
            return default
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._take(name)
        if value is _MISSING:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            self.complain(name, f"has to be a number from {low:g} to {high:g}")
            return default
        return float(value)

    def labels(self, name: str) -> dict[str, str]:
        value = self._take(name)
        if value is _MISSING:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for pair in value.items() for v in pair):
            self.complain(name, "has to be a table of texts (put numbers and yes or no into quotes)")
            return {}
        return dict(value)

    def networks(self, name: str) -> list[tuple[IPNetwork, str]]:
        """One network or a list of them, each with the place where it is written."""
        value = self._take(name)
        texts = [] if value is _MISSING else value if isinstance(value, list) else [value]
        found = []
        for index, text in enumerate(texts):
            place = f"{name}[{index}]" if isinstance(value, list) else name
            network = self._network(text, place)
            if network is not None:
                found.append((network, f"{self.where}.{place}"))
        return found

    def network(self, name: str) -> IPNetwork | None:
        """One network, which has to be there; None when it is not or is none."""
        value = self._take(name)
        if value is _MISSING:
            self.complain(name, "is missing")
            return None
        return self._network(value, name)

    def _network(self, text: Any, place: str) -> IPNetwork | None:
        try:
            if isinstance(text, str) and "%" not in text:
                if "/" not in text:
                    self.complain(place, f"{text[:50]!r} has no prefix length: write {text[:50]}/32 or the network")
                    return None
                return ip_network(text)
        except ValueError as exc:
            if "host bits" in str(exc):
                self.complain(place, f"{text} has host bits set: did you mean {ip_network(text, strict=False)}?")
                return None
        self.complain(place, f"{str(text)[:50]!r} is no network such as 10.250.0.0/16 or 2001:db8::/64")
        return None

    def tables(self, name: str) -> Iterator[Fields]:
        """The tables of a list, each to be read and closed."""
        value = self._take(name)
        if value is _MISSING:
            return
        if not isinstance(value, list):
            self.complain(name, "has to be a list")
            return
        for index, item in enumerate(value):
            table = Fields(item, f"{self.where}.{name}[{index}]".lstrip("."), self.problems)
            yield table
            table.close()

    def close(self) -> None:
        """Complain about every name that nobody asked for."""
        for name in self._value:
            if name not in self._asked:
                self.complain(name, f"no such field{nearest(name, sorted(self._asked))}")
