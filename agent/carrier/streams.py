"""The live streams of a carrier: numbered, pumped by a relay each, their events published, their messages kept for replay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from agent.carrier.api import Down, Event, Message, Up
from agent.carrier.dial import Link
from agent.carrier.port import UdpPort
from agent.carrier.relay import Relay
from agent.carrier.replay import Meter, Replay
from agent.carrier.stats import RelayStats

log = logging.getLogger("rhizome.carrier.streams")

#: How long a replaced stream delivers what is still on its way.
DRAIN_S = 2.0


@dataclass(slots=True, eq=False)
class _Stream:
    up: Up
    relay: Relay
    since: float
    on_end: Callable[[int, float], None]
    replay: Replay = field(default_factory=Replay)
    meter: Meter = field(default_factory=Meter)


class Streams:
    """Numbers start at `first` and are never used again."""

    def __init__(self, publish: Callable[[Event], None], first: int) -> None:
        self._publish = publish
        self._next = first
        self._live: dict[int, _Stream] = {}
        self._ended = RelayStats()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._live))

    def open(
        self,
        link: Link,
        port: UdpPort,
        *,
        on_end: Callable[[int, float], None],
        on_worn: Callable[[], None] | None = None,
    ) -> int:
        """Pump an established link and say Up. `on_end(number, lived_s)` is called once, before Down is published."""
        number, self._next = self._next, self._next + 1
        relay = Relay(
            link.stream,
            port,
            early=link.early,
            extensions=link.version > 0,
            on_control=partial(self._on_control, number),
            on_closed=partial(self._on_closed, number),
            on_worn=on_worn,
        )
        up = Up(
            number,
            link.identity,
            link.peer,
            link.via,
            link.version,
            (),
            link.credential_ends_at,
            link.ticket,
            link.port,
        )
        self._live[number] = _Stream(up, relay, _now(), on_end)
        fields = {"event": "stream.up", "stream": number, "identity": link.identity, "peer": link.peer}
        log.info("stream %d is up: %s at %s, %s", number, link.identity or "nobody", link.peer, link.via, extra=fields)
        self._publish(up)
        relay.start()
        return number

    def up(self, number: int) -> Up | None:
        """What to tell a daemon that attaches now; None when the stream has ended."""
        stream = self._live.get(number)
        return replace(stream.up, replay=stream.replay.messages()) if stream else None

    def send(self, number: int, text: str) -> None:
        """A control message to the peer. Nothing for a stream that has ended or whose peer has no extensions."""
        stream = self._live.get(number)
        if stream is None or not stream.up.peer_version:
            return
        try:
            stream.relay.send_control(text)
        except ValueError:
            log.exception("a control message that is too long was not sent", extra={"event": "control.too_long"})

    def close(self, number: int, reason: str, detail: str = "") -> None:
        if (stream := self._live.get(number)) is not None:
            stream.relay.close(reason, detail)

    def retire(self, number: int) -> None:
        """Take no more packets from WireGuard, deliver what still comes in, close after DRAIN_S."""
        if (stream := self._live.get(number)) is not None:
            stream.relay.retire(DRAIN_S)

    def stats(self) -> RelayStats:
        """The sum over all streams, live and ended. Delays are those of the live ones."""
        return sum((stream.relay.stats() for stream in self._live.values()), self._ended)

    def _on_control(self, number: int, text: str) -> None:
        stream = self._live.get(number)
        if stream is None:
            return
        if not stream.meter.passes(len(text), _now()):
            stream.relay.close("flood", "more control messages than a session has")
            return
        stream.replay.keep(text)
        self._publish(Message(number, text))

    def _on_closed(self, number: int, reason: str, detail: str) -> None:
        stream = self._live.pop(number)
        self._ended += replace(stream.relay.stats(), rtt_s=None, queue_delay_s=None)
        lived = _now() - stream.since
        fields = {"event": "stream.down", "stream": number, "reason": reason, "identity": stream.up.identity}
        log.info("stream %d is down after %.1f s: %s %s", number, lived, reason, detail, extra=fields)
        stream.on_end(number, lived)
        self._publish(Down(number, reason, detail))


def _now() -> float:
    return asyncio.get_running_loop().time()
