"""WireGuard's side of the relay: one connected UDP socket on 127.0.0.1."""

from __future__ import annotations

from agent.carrier.stats import RelayStats


class UdpPort:
    """The socket through which one or more relays reach one WireGuard device.

    A client has one for its whole life: an old and a new stream share it (make-before-break); WireGuard's packets go to the
    relay that started last. While there is none, only the newest handshake initiation is kept, for 5 s, for the next one.
    A server has one per stream, and WireGuard roams to it.
    """

    def __init__(self, wireguard_port: int, *, local_port: int = 0) -> None:
        """Bind 127.0.0.1:`local_port` (0: any) and connect to `wireguard_port`; needs a running loop. Raises HostError."""

    @property
    def local_port(self) -> int:
        """The port that WireGuard sees as its peer's endpoint."""
        raise NotImplementedError

    def stats(self) -> RelayStats:
        """Drops that belong to no relay: no stream, the kernel's receive buffer full, WireGuard's socket full."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket. Relays that still use it drop what they receive."""
