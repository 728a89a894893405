"""What a daemon and its carrier process say to each other: configuration down, events up.

The carrier process holds the TCP/TLS streams and the relay between them and WireGuard's UDP port. It is a process of its
own so that it outlives the daemon that started it (fail static): packets flow while the daemon is killed, upgraded or
restarted, and a new daemon adopts the running carrier. The carrier knows streams, capsules and certificates; it knows no
grants, addresses or policies.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: The name of the one WireGuard device of a server, or of the one that is preferred.
SYMBOLIC_TARGET = "wg"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files; read again at every dial and, by the listener, when they change.

    A client without a certificate (both empty) shows a token.
    """

    ca: str
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Proxy:
    """One HTTP CONNECT proxy. `headers` are sent with the CONNECT. `credentials_file` holds one line `user:password`;
    `credentials` is the same in memory, only for what HTTPS_PROXY carries."""

    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()
    credentials_file: str | None = None
    credentials: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DialConfig:
    """Client side. One stream is kept alive to `host:port`, through `proxies` in order (none: straight, or SNI proxy).

    `server_name` is what is sent as SNI and checked in the server's certificate. `wireguard_port` is the local device's
    UDP port; `relay_port` is the port on 127.0.0.1 that plays the peer's endpoint (0: choose, and say so in Ready).
    `token_file` holds a bearer token, which is read again at every dial and sent to a server that has proved its name. A one-time
    token is made this machine's own there first (agent.onetime).
    `target` is which of the server's devices the stream is to lead to, by its name (`ListenConfig.targets`).
    """

    host: str
    port: int
    server_name: str
    tls: TlsFiles
    wireguard_port: int
    relay_port: int = 0
    proxies: tuple[Proxy, ...] = ()
    expected_identity: str | None = None  # URI SAN the server's certificate must carry; None: any under the CA
    token_file: str | None = None
    target: str = SYMBOLIC_TARGET


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """Server side. `control_plane` is the trust domain a client's URI SAN must be in: `spiffe://<control_plane>/...`.

    `tokens`: a client without a certificate may show a bearer token, which the daemon is asked about.
    `targets` are the names of devices that a client may ask for, and their ports; `wireguard_port` is for those who name none.
    """

    addresses: tuple[tuple[str, int], ...]
    tls: TlsFiles
    wireguard_port: int
    control_plane: str
    max_streams: int = 10_000
    max_unauthenticated: int = 64
    tokens: bool = False
    targets: tuple[tuple[str, int], ...] = ()

    def port_of(self, target: str) -> int | None:
        """The UDP port of the device with this name, None where there is none."""
        return self.wireguard_port if target == SYMBOLIC_TARGET else dict(self.targets).get(target)

    def ports(self) -> frozenset[int]:
        """Of all devices."""
        return frozenset((self.wireguard_port, *(port for _, port in self.targets)))


# Events, carrier -> daemon. `stream` names a stream for as long as the carrier process lives; numbers are never reused.


@dataclass(frozen=True, slots=True)
class Ready:
    """The carrier is configured. `relay_port`: see DialConfig, 0 on the server. `pid` is the carrier's."""

    relay_port: int
    pid: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A Configure that cannot be carried out (an address in use, unusable certificate files). What ran before goes on."""

    detail: str


@dataclass(frozen=True, slots=True)
class Up:
    """A stream is up: TLS verified both ways and the upgrade answered 101.

    `identity` is the peer's URI SAN, `peer` its address as text, `via` the path in words ("CONNECT proxy.example:8443",
    "SNI proxy"). `replay` holds the last message of each type received on it, oldest first, when a daemon attaches to a
    carrier that is already running; `peer_version` is 0 for a conforming RFC 9298 peer that is not Rhizome.
    `credential_ends_at` is when the peer's certificate or token ends, as time of day; None on the client. `ticket` is that of
    the Admit, empty for a certificate. `wireguard_port` is that of the device that a server's stream leads to; 0 on the client.
    """

    stream: int
    identity: str
    peer: str
    via: str
    peer_version: int
    replay: tuple[str, ...] = ()
    credential_ends_at: float | None = None
    ticket: str = ""
    wireguard_port: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """A control capsule's text (JSON, at most 64 KiB, not yet parsed)."""

    stream: int
    text: str


@dataclass(frozen=True, slots=True)
class Down:
    """A stream ended. `reason` is a short fixed word (dead, eof, reset, tls, replaced, closed...), `detail` is for people."""

    stream: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class DialFailed:
    """Client: one attempt failed. `stage` is dns, tcp, proxy, tls, upgrade; the next attempt is in `retry_in_s`."""

    stage: str
    detail: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class Presented:
    """Server: a visitor without a certificate shows a token. Answered by one Admit or Turn with its number; a visitor that
    gets no answer in time is turned away."""

    visit: int
    token: str = field(repr=False)
    peer: str


@dataclass(frozen=True, slots=True)
class Turned:
    """Server: connections turned away before they became streams, counted by cause since the carrier started."""

    counts: tuple[tuple[str, int], ...]
    last_detail: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Relay counters summed over all streams since the carrier started; `drops` by reason. `rtt_s` None: not known."""

    streams: int
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    drops: tuple[tuple[str, int], ...]
    rtt_s: float | None = None
    queue_delay_s: float | None = None


Event = Ready | Rejected | Up | Message | Down | DialFailed | Presented | Turned | Stats


# Commands, daemon -> carrier.


@dataclass(frozen=True, slots=True)
class Configure:
    """First command after attaching. A carrier that runs with another configuration changes over, make-before-break."""

    config: DialConfig | ListenConfig


@dataclass(frozen=True, slots=True)
class Send:
    stream: int
    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """End a stream. On the client, the next dial starts no earlier than `retry_in_s` from now."""

    stream: int
    reason: str
    retry_in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Admit:
    """The token of this visit is good for this identity (as a URI SAN would have it), until `ends_at` (time of day). `ticket`
    is a word of the daemon's, which comes back in the stream's Up, also to a daemon that attaches later."""

    visit: int
    identity: str
    ends_at: float
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """The token of this visit is not good. `status` is the HTTP answer, `cause` a short fixed word, `words` for people."""

    visit: int
    status: int
    cause: str
    words: str


@dataclass(frozen=True, slots=True)
class Redial:
    """Client: make a new stream, use it, then let the old one drain (make-before-break)."""


@dataclass(frozen=True, slots=True)
class GetStats:
    """Answered by one Stats (and one Turned on the server)."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Close everything and exit. Only `cleanup` and an upgrade say this; a daemon that ends says nothing."""


Command = Configure | Send | Close | Admit | Turn | Redial | GetStats | Stop
