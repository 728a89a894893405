"""The carrier process: one role at a time, reconfigured while it runs, and nothing that depends on who watches it."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import resource
import socket
import stat
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO, cast

from agent import logs
from agent.carrier.api import (
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
        ports = [config.wireguard_port, *(port for _, port in config.addresses)]
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


def detach_from_starter(level: str, log_format: str) -> None:
    """Make this process independent of who started it: its directory, its open-file limit and where its words go."""
    os.chdir("/")
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stderr = cast(TextIO, PatientStderr())
    sys.stdout = sys.stderr = stderr
    logging.raiseExceptions = False
    logs.configure(level, log_format, static={"role": "carrier"}, stream=stderr)


class PatientStderr(io.TextIOBase):
    """Standard error that never blocks and never fails: what cannot be written at once is lost.

    A daemon's pipe may have lost its reader, a log file its disk. A pipe or terminal is opened anew, which makes our end
    non-blocking and leaves the daemon's as it is; a file is not, because two openings of it would write over each other.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._is_socket = False
        try:
            kind = os.fstat(2).st_mode
            self._is_socket = stat.S_ISSOCK(kind)
            if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            else:
                self._fd = os.dup(2)
        except OSError:
            return  # nobody to tell

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        try:
            if self._is_socket:
                with socket.socket(fileno=os.dup(self._fd)) as sock:
                    sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                os.write(self._fd, data)
        except OSError:
            pass
        return len(text)
