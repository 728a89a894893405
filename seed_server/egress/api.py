"""What the seed server's daemon and its egress process say to each other: configuration and reachability down, numbers up.

The egress process holds kube-apiserver's connections into the shoot. Like the carrier it is a process of its own, so that a
daemon that is killed, upgraded or restarted ends none of them. It knows ranges, certificates and who carries what just now;
it knows no grants, keys or peers.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.carrier.api import TlsFiles
from agent.companion.lines import Drain


@dataclass(frozen=True, slots=True)
class UnixListen:
    """A Unix socket to listen on. `uid` and `gid` None: those of this process. `mode`: permission bits."""

    path: str
    uid: int | None
    gid: int | None
    mode: int


@dataclass(frozen=True, slots=True)
class EgressConfig:
    """`tls.ca` is the CA of the clients' certificates; None together with no `addresses`.

    `shoot` are the declared ranges; `refused` pairs ranges that are never dialled with where they come from; `direct` are
    networks and names that are dialled in the seed. dials into the shoot leave by one of `devices` or not at all (none: the
    routes decide). `dns` are the shoot's name servers, none: names are refused. Times in seconds.
    """

    addresses: tuple[tuple[str, int], ...]
    tls: TlsFiles | None
    unix: UnixListen | None
    shoot: tuple[str, ...]
    refused: tuple[tuple[str, str], ...] = ()
    direct: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dial_timeout_s: float = 4.5
    max_connections: int = 4096
    max_heads: int = 256


# Events, egress -> daemon.


@dataclass(frozen=True, slots=True)
class Ready:
    """It listens. `addresses` with the ports that were bound, `pid` is the process."""

    addresses: tuple[tuple[str, int], ...]
    pid: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A Configure that cannot be carried out. What ran before goes on."""

    detail: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Since the process started. `dials` counts by (stage, result); `latency` by upper bound in seconds, the last one is
    infinity and written as -1. `up_bytes` went into the shoot, `down_bytes` came out of it. `last_failure` is for people."""

    open: int
    heads: int
    dials: tuple[tuple[str, str, int], ...]
    latency: tuple[tuple[float, int], ...]
    latency_sum_s: float
    up_bytes: int
    down_bytes: int
    last_failure: str


Event = Ready | Rejected | Stats


# Commands, daemon -> egress.


@dataclass(frozen=True, slots=True)
class Configure:
    """First command after attaching; what was said about reachability before is forgotten. Open connections live on."""

    config: EgressConfig


@dataclass(frozen=True, slots=True)
class Carries:
    """This client carries exactly these prefixes now. `fault` is why no packet gets through, since `fault_age_s`; empty for
    a client that is well."""

    client: str
    prefixes: tuple[str, ...]
    fault: str = ""
    fault_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Leaves:
    """This client carries nothing any more."""

    client: str


@dataclass(frozen=True, slots=True)
class Known:
    """All that carry anything have been told: from now on, what nobody carries is refused at once. `fault` is why nobody
    carries anything, since `fault_age_s`; empty when somebody does."""

    fault: str = ""
    fault_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GetStats:
    """Answered by one Stats."""


Command = Configure | Carries | Leaves | Known | GetStats | Drain
