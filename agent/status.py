"""What a role says about itself: one frozen value, made on demand, shown as JSON, metrics and the `status` table.

Holds no secrets, so all of it may be printed. Ages and durations are seconds, None for never or not known.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

#: The status socket of the role with the device `ifname` is `<ifname>.status` in the runtime directory.
SOCKET_SUFFIX = ".status"
#: A file of this name asks the seed server of that device for new preshared keys; it takes it away.
ASKED_SUFFIX = ".rotate"
#: As much for WireGuard's own keys.
ASKED_KEYS_SUFFIX = ".rotate-wireguard"

#: Counts by a bounded set of words (reasons, causes, kinds); a JSON object.
Counts = tuple[tuple[str, int], ...]


class Verdict(Enum):
    """UP: all of it works. DEGRADED: packets cross, but something is missing. DOWN: no packet crosses."""

    UP = "UP"
    DEGRADED = "DEGRADED"
    DOWN = "DOWN"

    @property
    def ready(self) -> bool:
        return self is not Verdict.DOWN


@dataclass(frozen=True, slots=True)
class PathHealth:
    """One way to the other side. `transport` is stream or direct, `state` up, dialling or down, `via` the way in words. `in_use`:
    packets are sent by it."""

    transport: str
    via: str
    state: str
    detail: str = ""
    rtt_s: float | None = None
    handshake_age_s: float | None = None
    mtu_bytes: int | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    drops: Counts = ()
    in_use: bool = True
    canary_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerHealth:
    """One tunnel peer: on the server a client, on a client the server. Prefixes are those that it carries now.

    `standing` is whether a client is relied on for what others could carry too: well, unproven or lost, and why; empty
    where that is not asked. `reaches` is what of the shoot a sidecar may open connections to.
    """

    name: str
    addresses: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    path: str = ""
    handshake_age_s: float | None = None
    canary_age_s: float | None = None
    rtt_s: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    refused: tuple[str, ...] = ()
    standing: str = ""
    reason: str = ""
    role: str = ""
    reaches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RangeHealth:
    """One declared range of the shoot. `kind` is node, pod or service; `carrier` the peer's name, empty for none."""

    prefix: str
    kind: str
    carrier: str = ""


@dataclass(frozen=True, slots=True)
class Counters:
    """Since this process started. `refused` prefixes by reason, `not_let_in` clients by reason, `turned_away` connections by cause, `repairs` by step,
    `failovers` of clients whose shared prefixes went to others, by cause; `moves` of such prefixes, back again included;
    `conflicts`: identities that were found at work in two places; `rotations` of WireGuard's own keys, by what has become of them."""

    refused: Counts = ()
    turned_away: Counts = ()
    repairs: Counts = ()
    reconnects: int = 0
    failovers: Counts = ()
    moves: int = 0
    path_moves: int = 0
    conflicts: int = 0
    rotations: Counts = ()
    not_let_in: Counts = ()


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """Addresses of one tunnel network: how many can be given in all, are held, rest after they were given back, and are kept
    from before the pool was what it is now."""

    network: str
    size: int
    used: int
    quarantined: int = 0
    orphaned: int = 0

    @property
    def free(self) -> int:
        return self.size - self.used - self.quarantined - self.orphaned


@dataclass(frozen=True, slots=True)
class EgressHealth:
    """The egress proxy, since its process started. `dials` counts by "stage result", `latency` successful ones by the upper
    bound of their bucket in seconds ("inf" for the last); `up_bytes` went into the shoot."""

    listening: tuple[str, ...]
    open: int = 0
    heads: int = 0
    dials: Counts = ()
    latency: Counts = ()
    latency_sum_s: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    last_failure: str = ""


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """Everything that a role tells. `since_s` is how long the verdict stands; `causes` has the root cause first.

    `key_age_s` is that of WireGuard's own key, `key_device` the device that has it, `rotation` what goes on with it in words, empty for nothing.
    `epoch` names the incarnation of the device; `backend` is kernel or userspace and `backend_reason` why. `egress` None: not configured.
    """

    role: str
    control_plane: str
    ifname: str
    verdict: Verdict
    sentence: str
    since_s: float
    causes: tuple[str, ...] = ()
    version: str = ""
    epoch: str = ""
    backend: str = ""
    backend_reason: str = ""
    paths: tuple[PathHealth, ...] = ()
    peers: tuple[PeerHealth, ...] = ()
    ranges: tuple[RangeHealth, ...] = ()
    counters: Counters = Counters()
    certificate_expires_in_s: float | None = None
    certificate_lifetime_s: float | None = None
    grant_expires_in_s: float | None = None
    token_expires_in_s: float | None = None
    token_lifetime_s: float | None = None
    pools: tuple[PoolHealth, ...] = ()
    egress: EgressHealth | None = None
    key_age_s: float | None = None
    key_device: str = ""
    rotation: str = ""


_NESTED: Mapping[str, type[Any]] = {
    "tuple[PathHealth, ...]": PathHealth,
    "tuple[PeerHealth, ...]": PeerHealth,
    "tuple[RangeHealth, ...]": RangeHealth,
    "tuple[PoolHealth, ...]": PoolHealth,
}


def to_json(value: Any) -> dict[str, Any]:
    """Plain data for json.dumps: dataclasses and counts become objects, tuples arrays."""
    kind: Any = type(value)
    return {name: _plain(declared, getattr(value, name)) for name, declared in _fields(kind)}


@functools.cache
def _fields(cls: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.type) for field in dataclasses.fields(cls))


def _plain(declared: Any, value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):  # most of them are
        return value
    if declared == "Counts":
        return dict(value)
    if isinstance(value, tuple):
        return [_plain("", item) for item in value]
    return value.value if isinstance(value, Verdict) else to_json(value)


def from_json(data: Any) -> RoleStatus:
    """A status as another version may have written it: unknown fields are dropped, missing ones have their default.

    Raises ValueError when it is not a status at all.
    """
    try:
        return _read(RoleStatus, data)
    except (TypeError, AttributeError, KeyError) as exc:
        raise ValueError("not a status of Rhizome") from exc


def _read(cls: type[T], data: Mapping[str, Any]) -> T:
    known = {field.name: field.type for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: _value(known[name], value) for name, value in data.items() if name in known})


def _value(declared: Any, value: Any) -> Any:
    if declared == "Counts":
        return tuple(value.items())
    if declared == "Verdict":
        return Verdict(value)
    if declared == "Counters":
        return _read(Counters, value)
    if declared == "EgressHealth | None":
        return None if value is None else _read(EgressHealth, value)
    if declared in _NESTED:
        return tuple(_read(_NESTED[declared], item) for item in value)
    return tuple(value) if isinstance(value, list) else value
