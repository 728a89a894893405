"""What of the shoot can be reached just now, as the daemon last said. Pure; times are monotonic seconds.

Longest prefix first, like the tunnel itself. Without a daemon nothing is known to be down: everything declared is tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.health import duration
from agent.model import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True)
class Fault:
    """Why no packet gets through, and since when."""

    words: str
    since: float

    def text(self, now: float) -> str:
        return f"{self.words} for {duration(now - self.since)}"


class Reach:
    """Prefixes and who carries them."""

    def __init__(self) -> None:
        self._clients: dict[str, tuple[tuple[IPNetwork, ...], Fault | None]] = {}
        #: (version, prefix length) -> network address -> names of those who carry it.
        self._tables: dict[tuple[int, int], dict[int, set[str]]] = {}
        self._nobody: Fault | None = None
        self._is_known = False

    def put(self, client: str, prefixes: Iterable[IPNetwork], fault: Fault | None) -> None:
        """This client carries exactly these."""
        self.remove(client)
        self._clients[client] = tuple(prefixes), fault
        for prefix in self._clients[client][0]:
            table = self._tables.setdefault((prefix.version, prefix.prefixlen), {})
            table.setdefault(int(prefix.network_address), set()).add(client)

    def remove(self, client: str) -> None:
        """It carries nothing (any more)."""
        prefixes, _ = self._clients.pop(client, ((), None))
        for prefix in prefixes:
            key, network = (prefix.version, prefix.prefixlen), int(prefix.network_address)
            names = self._tables[key][network]
            names.discard(client)
            if not names:
                del self._tables[key][network]
                if not self._tables[key]:
                    del self._tables[key]

    def know(self, nobody: Fault | None) -> None:
        """All has been told; `nobody` is why nobody carries anything."""
        self._is_known = True
        self._nobody = nobody

    def forget(self) -> None:
        """Nothing is known any more."""
        self._clients.clear()
        self._tables.clear()
        self._nobody = None
        self._is_known = False

    def fault(self, address: IPAddress, now: float) -> str:
        """Why the address cannot be reached, in words; empty when it can, or when nothing is known against it."""
        if not self._is_known:
            return ""
        names = self._carriers(address)
        if not names:
            return self._nobody.text(now) if self._nobody is not None else f"no client carries {address}"
        faults = [self._clients[name][1] for name in sorted(names)]
        if any(fault is None for fault in faults):
            return ""
        return next(fault.text(now) for fault in faults if fault is not None)

    def _carriers(self, address: IPAddress) -> set[str]:
        bits, value = address.max_prefixlen, int(address)
        lengths = [length for version, length in self._tables if version == address.version]
        for length in sorted(lengths, reverse=True):
            network = value >> (bits - length) << (bits - length)
            if names := self._tables[address.version, length].get(network):
                return names
        return set()
