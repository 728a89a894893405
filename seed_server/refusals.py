"""What sidecars are refused, because nobody in the shoot can get it just now. Pure; times are monotonic seconds.

The egress proxy answers a dial with 503 and ends what waits in vain. Behind routes there are only packets, and the hub's nft
table is who answers: otherwise kube-apiserver keeps a connection to a dead kubelet until TCP gives up, a quarter of an hour later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import IntEnum

from agent.firewall import ALL_REACHABLE, AddressRange, Unreachable
from agent.model import IPNetwork
from seed_server.reachable import Carrier

#: Who sends on a connection that exists is refused after so long: a new stream, or another client, may be there before.
ABANDONED_S = 5.0


class _State(IntEnum):
    """Of a part of the shoot; the lowest counts where several carry the same."""

    REACHED = 0
    SUSPENDED = 1
    ABANDONED = 2


class Refusals:
    """Remembers of each declared range when somebody last carried a part of it."""

    def __init__(self, ranges: Iterable[IPNetwork], now: float) -> None:
        self._carried_at = dict.fromkeys(ranges, now)
        self._states: dict[IPNetwork, _State] = {}  # of the last look that found something
        self._found = ALL_REACHABLE

    def look(self, carriers: Collection[Carrier], now: float) -> Unreachable:
        """A longer prefix wins over the one around it, as in the tunnel: a node that is well inside the range of a dead one is
        reached. A range that is carried in parts is not refused between them; WireGuard itself answers there, on the kernel."""
        states: dict[IPNetwork, _State] = {}
        for network, carried_at in self._carried_at.items():
            if any(_lies_in(prefix, network) for carrier in carriers for prefix in carrier.prefixes):
                self._carried_at[network] = now
            elif now - carried_at >= ABANDONED_S:
                states[network] = _State.ABANDONED
        if not states and not any(carrier.fault for carrier in carriers):
            return ALL_REACHABLE
        for carrier in carriers:
            state = _state(carrier, now)
            for prefix in carrier.prefixes:
                states[prefix] = min(state, states.get(prefix, state))
        if states != self._states:
            self._states, self._found = states, _unreachable(states)
        return self._found


def _unreachable(states: Mapping[IPNetwork, _State]) -> Unreachable:
    found: dict[_State, list[AddressRange]] = {state: [] for state in _State}
    for version in (4, 6):
        for first_and_last, state in _painted({n: s for n, s in states.items() if n.version == version}):
            _append(found[state], first_and_last)
    return Unreachable(tuple(found[_State.SUSPENDED]), tuple(found[_State.ABANDONED]))


def _state(carrier: Carrier, now: float) -> _State:
    if not carrier.fault:
        return _State.REACHED
    return _State.ABANDONED if now - carrier.since >= ABANDONED_S else _State.SUSPENDED


def _lies_in(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.network_address in outer


def _painted(states: Mapping[IPNetwork, _State]) -> Iterator[tuple[AddressRange, _State]]:
    """All addresses of these networks of one family, in order, each with the state of the longest prefix that it lies in."""
    around: list[IPNetwork] = []
    at = 0  # what comes before is painted

    def until(last: int) -> Iterator[tuple[AddressRange, _State]]:
        if at <= last:
            address = type(around[-1].network_address)
            yield (address(at), address(last)), states[around[-1]]

    for network in [*sorted(states), None]:
        while around and (network is None or not _lies_in(network, around[-1])):
            last = int(around[-1].broadcast_address)
            yield from until(last)
            at = max(at, last + 1)
            around.pop()
        if network is not None:
            if around:
                yield from until(int(network.network_address) - 1)
            at = int(network.network_address)
            around.append(network)


def _append(ranges: list[AddressRange], more: AddressRange) -> None:
    """As one with the last of them, if nothing lies between."""
    if ranges:
        first, last = ranges[-1]
        if last.version == more[0].version and int(last) + 1 == int(more[0]):
            ranges[-1] = first, more[1]
            return
    ranges.append(more)
