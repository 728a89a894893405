"""The server's role: a listener, and a hub with the streams that came of it."""

from __future__ import annotations

from collections.abc import Callable

from agent.carrier.accept import Listener
from agent.carrier.api import Admit, Event, ListenConfig, Turn, Turned
from agent.carrier.bearer import Inquiries
from agent.carrier.hub import Hub
from agent.carrier.stats import RelayStats
from agent.carrier.streams import Streams
from agent.carrier.turned import Turnaways


class Downlink:
    """Listens as soon as it is made, with a running loop. Raises HostError for an address, ConfigError for the files."""

    #: A server has one port per client, and WireGuard learns them by itself.
    relay_port = 0

    def __init__(self, config: ListenConfig, streams: Streams, publish: Callable[[Event], None]) -> None:
        self.config = config
        self._streams = streams
        self._turned = Turnaways(publish)
        self._hub = Hub(streams, config.max_streams)
        self._inquiries = Inquiries(publish)
        self._listener = Listener(config, self._hub, self._turned, self._inquiries)

    def reconfigure(self, config: ListenConfig) -> None:
        """Streams stay, unless they lead to a WireGuard port that is none any more, or belong to another control plane now."""
        self._listener.reconfigure(config)
        old, self.config = self.config, config
        self._hub.max_streams = config.max_streams
        keep = config.ports() if old.control_plane == config.control_plane else frozenset[int]()
        self._hub.close("replaced", "the server's configuration has changed", keep=keep)

    def redial(self) -> None:
        """A server dials nobody."""

    def answer(self, answer: Admit | Turn) -> None:
        """What the daemon says about a token."""
        self._inquiries.answer(answer)

    def close_stream(self, number: int, reason: str, retry_in_s: float) -> None:
        self._streams.close(number, reason)

    def port_stats(self) -> RelayStats:
        return self._hub.port_stats()

    def turned(self) -> Turned:
        return self._turned.turned()

    def close(self) -> None:
        self._listener.close()
        self._hub.close("closed", "the carrier stops")
        self._turned.close()
