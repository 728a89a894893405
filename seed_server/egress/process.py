"""The egress process: reconfigured while it runs, drained when it has to go, and nothing that depends on who watches it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from ipaddress import ip_network
from pathlib import Path

from agent.companion import control as companion
from agent.companion.lines import Displaced, Drain, Hello, encode
from agent.errors import BadMessage, ConfigError, RhizomeError
from agent.run import spawn
from seed_server.egress import lines
from seed_server.egress.api import (
    Carries,
    Command,
    Configure,
    EgressConfig,
    Event,
    GetStats,
    Known,
    Leaves,
    Ready,
    Rejected,
    Stats,
)
from seed_server.egress.front import Front
from seed_server.egress.proxy import Proxy, policy_of
from seed_server.egress.reach import Fault

log = logging.getLogger("rhizome.egress")

#: On SIGTERM, for connections that are open: less than the 30 s that Kubernetes gives a pod.
DRAIN_S = 25.0


class Egress:
    """What the control socket's commands do. `stop` is set by Drain, `drain_s` says how long open tunnels may take then."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop
        self.drain_s = DRAIN_S
        self.proxy: Proxy | None = None
        self._front: Front | None = None

    def configure(self, config: EgressConfig) -> Ready:
        """Raises RhizomeError; then what ran before goes on."""
        try:
            policy_of(config)
            proxy = self.proxy or Proxy(config)
            before = proxy.config
            proxy.reconfigure(config)
        except ValueError as exc:
            raise ConfigError(f"egress: {exc}") from exc
        front = self._front or Front(proxy)
        try:
            front.configure(config)
        except RhizomeError:
            proxy.reconfigure(before)
            if self.proxy is None:
                proxy.close()
            raise
        self.proxy, self._front = proxy, front
        proxy.reach.forget()
        return Ready(front.addresses, os.getpid())

    def execute(self, command: Command) -> Stats | None:
        now = asyncio.get_running_loop().time()
        match command:
            case Drain(drain_s):
                self.drain_s = drain_s
                self.stop.set()
            case _ if self.proxy is None:
                pass
            case Carries(client, prefixes, words, age_s):
                fault = Fault(words, now - age_s) if words else None
                self.proxy.reach.put(client, map(ip_network, prefixes), fault)
            case Leaves(client):
                self.proxy.reach.remove(client)
            case Known(words, age_s):
                self.proxy.reach.know(Fault(words, now - age_s) if words else None)
                self.proxy.dialler.on_reach_changed()
            case GetStats():
                return self._stats()
        return None

    def forget(self) -> None:
        """The daemon is gone, and with it what it knew."""
        if self.proxy is not None:
            self.proxy.reach.forget()

    def _stats(self) -> Stats:
        assert self.proxy is not None
        assert self._front is not None
        proxy, tally = self.proxy, self.proxy.tally
        return Stats(
            proxy.open,
            self._front.heads,
            tally.rows(),
            tally.latency(),
            tally.latency_sum_s,
            proxy.pump.up_bytes,
            proxy.pump.down_bytes,
            tally.last_failure,
        )

    def shut(self) -> None:
        """Listen no more."""
        if self._front is not None:
            self._front.close()

    async def drain(self) -> None:
        """Wait until open connections have ended, at most `drain_s`; then end them."""
        if self.proxy is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.drain_s):
                await self.proxy.idle.wait()
        if self.proxy.open:
            log.warning("%d connections are cut off", self.proxy.open, extra={"event": "egress.cut"})
        self.proxy.close()


class ControlSocket(companion.ControlSocket):
    """The one whose Configure came last is the daemon that is heard; whoever was it before is told that it is displaced."""

    def __init__(self, path: Path, egress: Egress) -> None:
        """Raises HostError when another egress process has the path, or the path cannot be had."""
        super().__init__(path, "egress process")
        self._egress = egress
        self._daemon: asyncio.StreamWriter | None = None

    def _hello(self) -> Hello:
        return Hello(lines.build(), os.getpid())

    def _on_left(self, writer: asyncio.StreamWriter) -> None:
        if self._daemon is writer:
            log.info("the daemon is gone, going on without", extra={"event": "daemon.gone"})
            self._daemon = None
            self._egress.forget()

    def _on_nobody_left(self) -> None:
        if self._egress.proxy is None:
            self._egress.stop.set()

    def _obey(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            command = lines.decode_command(line)
            answer = (
                self._configure(command, writer) if isinstance(command, Configure) else self._execute(command, writer)
            )
        except (BadMessage, ValueError) as exc:
            log.warning("a command was not understood: %s", exc, extra={"event": "control.bad"})
            return
        if answer is not None:
            writer.write(encode(answer))

    def _configure(self, command: Configure, writer: asyncio.StreamWriter) -> Event:
        if self._daemon is not None and self._daemon is not writer:
            self._daemon.write(encode(Displaced()))
            self._daemon.close()
        self._daemon = writer
        try:
            return self._egress.configure(command.config)
        except RhizomeError as exc:
            log.warning("the configuration is rejected: %s", exc, extra={"event": "control.rejected"})
            return Rejected(str(exc))

    def _execute(self, command: Command, writer: asyncio.StreamWriter) -> Event | None:
        if isinstance(command, Carries | Leaves | Known) and writer is not self._daemon:
            return None
        return self._egress.execute(command)


async def run(path: Path, stop: asyncio.Event) -> None:
    """The whole life of an egress process. Raises HostError when another one has `path`."""
    egress = Egress(stop)
    control = ControlSocket(path, egress)
    log.info("egress is ready for its daemon", extra={"event": "egress.started", "pid": os.getpid()})
    serving = spawn(control.serve(), name="egress.control", vital=True)
    try:
        await stop.wait()
    finally:
        # Path and addresses first: the next process need not wait for our last connection.
        egress.shut()
        serving.cancel()
        control.close()
        await egress.drain()
        log.info("egress stops", extra={"event": "egress.stopped"})
