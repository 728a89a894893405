"""The carrier process: one role at a time, reconfigured while it runs, and nothing that depends on who watches it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from agent.carrier.api import (
    Admit,
    Close,
    Command,
    Configure,
    DialConfig,
    Event,
    GetStats,
    ListenConfig,
    Ready,
    Redial,
    Send,
    Stats,
    Stop,
    Turn,
    Turned,
)
from agent.carrier.control import Audience, ControlSocket
from agent.carrier.downlink import Downlink
from agent.carrier.streams import Streams
from agent.carrier.uplink import Uplink
from agent.errors import ConfigError
from agent.run import spawn

log = logging.getLogger("rhizome.carrier")


class Carrier:
    """What the control socket's commands do. `stop` is set by Stop."""

    def __init__(self, publish: Callable[[Event], None], stop: asyncio.Event) -> None:
        # Milliseconds since boot: a carrier that follows a killed one repeats none of its numbers.
        self.streams = Streams(publish, first=time.monotonic_ns() // 1_000_000)
        self._publish = publish
        self._stop = stop
        self._role: Uplink | Downlink | None = None

    def configure(self, command: Configure) -> Ready:
        """Start, change over, or nothing when it is the same. Raises RhizomeError; then what ran before goes on."""
        role, config = self._role, command.config
        _check(config)
        if isinstance(role, Uplink) and isinstance(config, DialConfig):
            if not role.runs(config):
                role.reconfigure(config)
        elif isinstance(role, Downlink) and isinstance(config, ListenConfig):
            if config != role.config:
                role.reconfigure(config)
        else:
            new = self._make(config)
            if role is not None:
                role.close()
            self._role = new
        assert self._role is not None
        return Ready(self._role.relay_port, os.getpid())

    def _make(self, config: DialConfig | ListenConfig) -> Uplink | Downlink:
        if isinstance(config, DialConfig):
            return Uplink(config, self.streams, self._publish)
        return Downlink(config, self.streams, self._publish)

    def execute(self, command: Command) -> tuple[Stats | Turned, ...]:
        match command:
            case Send(stream, text):
                self.streams.send(stream, text)
            case Close(stream, reason, retry_in_s) if self._role is not None:
                self._role.close_stream(stream, reason, retry_in_s)
            case Admit() | Turn() if isinstance(self._role, Downlink):
                self._role.answer(command)
            case Redial() if self._role is not None:
                self._role.redial()
            case GetStats():
                turned = (self._role.turned(),) if isinstance(self._role, Downlink) else ()
                return (self._stats(), *turned)
            case Stop():
                self._stop.set()
        return ()

    def on_nobody_left(self) -> None:
        """Go on, unless there is nothing to go on with."""
        if self._role is None:
            self._stop.set()

    def _stats(self) -> Stats:
        total = self.streams.stats()
        if self._role is not None:
            total += self._role.port_stats()
        return Stats(
            len(self.streams),
            total.tx_packets,
            total.tx_bytes,
            total.rx_packets,
            total.rx_bytes,
            total.drops,
            total.rtt_s,
            total.queue_delay_s,
        )

    def close(self) -> None:
        if self._role is not None:
            self._role.close()


def _check(config: DialConfig | ListenConfig) -> None:
    """Raises ConfigError for what the socket module would stumble over later."""
    if isinstance(config, DialConfig):
        ports = [config.port, *(proxy.port for proxy in config.proxies), config.wireguard_port, config.relay_port]
        hosts = []
    else:
        ports = [*config.ports(), *(port for _, port in config.addresses)]
        hosts = [host for host, _ in config.addresses]
    problems = [f"{port} is no port" for port in ports if not 0 <= port <= 65535]
    for host in hosts:
        try:
            ip_address(host)
        except ValueError:
            problems.append(f"{host!r} is no address to listen on")
    if problems:
        raise ConfigError(*problems)


async def run(path: Path, stop: asyncio.Event) -> None:
    """The whole life of a carrier process. Raises HostError when another one has `path`."""
    audience = Audience()
    carrier = Carrier(audience.publish, stop)
    control = ControlSocket(path, carrier, audience)
    log.info("carrier is ready for its daemon", extra={"event": "carrier.started", "pid": os.getpid()})
    try:
        spawn(control.serve(), name="carrier.control", vital=True)
        await stop.wait()
    finally:
        carrier.close()
        # Relays close their streams and say so from callbacks of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        control.close()
        log.info("carrier stops", extra={"event": "carrier.stopped"})
