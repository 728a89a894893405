"""The client's role: one stream to the server, kept alive, replaced before it is broken.

wanted -> dial -> up -> (worn, certificate changed, Redial, Configure: dial again, switch over, drain the old one)
   ^        |     |
   +- wait -+     +-- down: wanted again, at once
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Never

from agent.backoff import Backoff
from agent.carrier import tls
from agent.carrier.api import DialConfig, DialFailed, Event
from agent.carrier.connect import FirstHop
from agent.carrier.dial import DialError, Link, Stage, dial
from agent.carrier.port import UdpPort
from agent.carrier.stats import RelayStats
from agent.carrier.streams import Streams
from agent.errors import HostError
from agent.logs import Limited
from agent.run import spawn

log = logging.getLogger("rhizome.carrier.uplink")

#: What may be over in a moment (refused, reset, unreachable, 503) is tried again within this: a proxy that is back is
#: used within a second, however long it was away.
AWAY_FIRST_S, AWAY_CAP_S = 0.05, 0.8
#: What somebody has to change first (403, a certificate) is asked less and less often.
REFUSED_FIRST_S, REFUSED_CAP_S = 0.5, 30.0
#: A stream that lived for so long was no failure; the next one is dialled at once.
SETTLED_S = 10.0
CERTIFICATE_POLL_S = 5.0
SAME_WORDS_S = 60.0


class Uplink:
    """Starts dialling when it is made, with a running loop. Raises HostError when there is no UDP port to be had."""

    def __init__(self, config: DialConfig, streams: Streams, publish: Callable[[Event], None]) -> None:
        self.config = config
        self._streams = streams
        self._publish = publish
        self._port = _open_port(config.wireguard_port, config.relay_port)
        self._current: int | None = None
        self._limited = Limited(log, every_s=SAME_WORDS_S)
        self._pace = _Pace()
        self._dialling: asyncio.Task[Never] | None = None
        self._begin()

    @property
    def relay_port(self) -> int:
        return self._port.local_port

    def port_stats(self) -> RelayStats:
        return self._port.stats()

    def runs(self, config: DialConfig) -> bool:
        """Whether `config` asks for nothing that is not so already. Another target counts from the next dial on."""
        same = replace(config, target=self.config.target) in (
            self.config,
            replace(self.config, relay_port=0),
            replace(self.config, relay_port=self.relay_port),
        )
        if same:
            self.config = replace(self.config, target=config.target)
        return same

    def reconfigure(self, config: DialConfig) -> None:
        """Change over to another configuration; the stream of the old one stays until the new one's is up.

        A new WireGuard port is the exception: the stream ends, because nothing behind it does either. Raises HostError.
        """
        moved = config.wireguard_port != self.config.wireguard_port
        if moved or config.relay_port not in (0, self.relay_port):
            wanted = config.relay_port or self.relay_port
            if self._current is not None:
                self._streams.close(self._current, "replaced", "another WireGuard port was configured")
                self._current = None
            self._port.close()
            self._port = _open_port(config.wireguard_port, wanted)
        self.config = config
        self._begin()

    def redial(self) -> None:
        """Make a new stream now, whatever was to be waited for, and then let the current one drain."""
        self._pace.hurry()

    def close_stream(self, number: int, reason: str, retry_in_s: float) -> None:
        if number == self._current:
            self._pace.hold(retry_in_s)
        self._streams.close(number, reason)

    def close(self) -> None:
        """Stop dialling, end the streams, give back the UDP port."""
        if self._dialling is not None:
            self._dialling.cancel()
        for number in self._streams:
            self._streams.close(number, "closed", "the carrier stops")
        self._port.close()

    def _begin(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        self._pace = _Pace()
        self._dialling = spawn(
            self._keep(tls.Credentials(self.config.tls, server_side=False)), name="carrier.dial", vital=True
        )

    async def _keep(self, credentials: tls.Credentials) -> Never:
        credentials.refresh()
        watch = spawn(self._watch(credentials), name="carrier.certificates")
        hop = FirstHop()
        try:
            while True:
                await self._pace.turn()
                try:
                    link = await dial(self.config, credentials, hop)
                except DialError as exc:
                    self._failed(exc)
                except Exception as exc:
                    # Nobody may be there to start this process again, and its stream may be up.
                    log.exception("dialling met an error that nobody foresaw", extra={"event": "dial.crashed"})
                    self._failed(DialError(Stage.TCP, f"a bug in Rhizome: {exc!r}", final=True))
                else:
                    self._install(link)
        finally:
            watch.cancel()

    def _failed(self, exc: DialError) -> None:
        delay = self._pace.failed(final=exc.final)
        fields = {"event": "dial.failed", "stage": exc.stage.value}
        # An outage is many attempts with the same words.
        self._limited.log(logging.WARNING, str(exc), "%s: %s; trying again", exc.stage.value, exc, extra=fields)
        self._publish(DialFailed(exc.stage.value, str(exc), round(delay, 3)))

    def _install(self, link: Link) -> None:
        old = self._current
        self._pace.connected()
        self._current = self._streams.open(link, self._port, on_end=self._on_end, on_worn=self.redial)
        if old is not None:
            self._streams.retire(old)

    def _on_end(self, number: int, lived_s: float) -> None:
        if number == self._current:
            self._current = None
            self._pace.lost(settled=lived_s >= SETTLED_S)

    async def _watch(self, credentials: tls.Credentials) -> Never:
        while True:
            await asyncio.sleep(CERTIFICATE_POLL_S)
            if credentials.refresh():
                self.redial()


class _Pace:
    """When to dial. A turn comes when a stream is wanted and the time that was to be waited for has passed."""

    def __init__(self) -> None:
        self._away = Backoff(AWAY_FIRST_S, AWAY_CAP_S)
        self._refused = Backoff(REFUSED_FIRST_S, REFUSED_CAP_S)
        self._not_before = 0.0
        self._wanted = asyncio.Event()
        self._hurry = asyncio.Event()
        self._wanted.set()

    async def turn(self) -> None:
        await self._wanted.wait()
        delay = self._not_before - _now()
        if delay > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), delay)
        self._hurry.clear()

    def hurry(self) -> None:
        self._not_before = 0.0
        self._wanted.set()
        self._hurry.set()

    def hold(self, delay_s: float) -> None:
        self._not_before = max(self._not_before, _now() + delay_s)

    def connected(self) -> None:
        self._refused.reset()
        self._wanted.clear()
        self._hurry.clear()

    def failed(self, *, final: bool) -> float:
        delay = (self._refused if final else self._away).next()
        self._not_before = _now() + delay
        return delay

    def lost(self, *, settled: bool) -> None:
        if settled:
            self._away.reset()
        else:
            self.hold(self._away.next())
        self._wanted.set()


def _open_port(wireguard_port: int, relay_port: int) -> UdpPort:
    try:
        return UdpPort(wireguard_port, local_port=relay_port)
    except HostError as exc:
        if not relay_port:
            raise
        log.warning("%s; taking another port", exc, extra={"event": "relay.port_taken", "port": relay_port})
        return UdpPort(wireguard_port)


def _now() -> float:
    return asyncio.get_running_loop().time()
