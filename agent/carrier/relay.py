"""Pumps one established TLS stream and WireGuard's UDP port into each other."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from agent.carrier.port import UdpPort
from agent.carrier.stats import RelayStats


class Relay:
    """One stream whose upgrade was answered with 101. Everything happens in callbacks of the running loop; no task.

    `stream`: handshake done, non-blocking; the relay owns and closes it. `early`: bytes that were read behind the HTTP
    head. `extensions`: the peer said Rhizome-Version; without it only DATAGRAM capsules are sent (no window, no pings,
    no control). `on_control(text)`: a control message arrived. `on_closed(reason, detail)`: called exactly once, from the
    loop and never from inside a call of yours; reason is one of eof, reset, tls, dead, malformed, flood, retired or what
    `close` was given. `on_worn()`: called once when the stream should be replaced (about an hour or 100 GB; RFC 8446 5.5).
    """

    def __init__(
        self,
        stream: ssl.SSLSocket,
        port: UdpPort,
        *,
        early: bytes = b"",
        extensions: bool,
        on_control: Callable[[str], None],
        on_closed: Callable[[str, str], None],
        on_worn: Callable[[], None] | None = None,
    ) -> None: ...

    def start(self) -> None:
        """Begin to pump, and become the port's active relay: from now on WireGuard's packets go here."""

    def send_control(self, text: str) -> None:
        """Queue one control message, at most 64 KiB of UTF-8 (else ValueError). Silently nothing when the relay is closed.

        Raises Unsupported when the peer has no extensions. A peer that does not read its messages is closed with
        reason `flood` when 1 MiB of them waits.
        """

    def retire(self, after_s: float) -> None:
        """Take no more packets from WireGuard, deliver what still comes in, close after `after_s` seconds."""

    def close(self, reason: str, detail: str = "") -> None:
        """End the stream now. Calling it again does nothing."""

    def stats(self) -> RelayStats:
        """What was moved and dropped since the start; also after the end."""
        raise NotImplementedError
