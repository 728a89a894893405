"""The carrier's side of the lines: a Unix socket, and the daemon that listens to what happens, if there is one.

Any number of processes of our user may connect, ask for Stats or say Stop. The one whose Configure came last is the
audience: it is told everything, and whoever was the audience before is told that it is displaced. Nobody is waited for:
an audience that does not read is hung up on, and finds everything still true when it attaches again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Protocol

from agent.carrier import ipc
from agent.carrier.api import Command, Configure, Down, Event, Message, Ready, Rejected, Stats, Turned, Up
from agent.carrier.streams import Streams
from agent.companion import control as companion
from agent.companion.lines import Displaced, Hello, encode
from agent.errors import BadMessage, RhizomeError
from agent.run import spawn

log = logging.getLogger("rhizome.carrier.control")

#: Written but not yet read by a daemon. Beyond it the daemon is stuck.
UNREAD_MAX_BYTES = 8 * 1024 * 1024


class Commanded(Protocol):
    """What the lines control."""

    streams: Streams

    def configure(self, command: Configure) -> Ready:
        """Raises RhizomeError; then nothing has changed."""

    def execute(self, command: Command) -> tuple[Stats | Turned, ...]:
        """Any other command, and its answers."""

    def on_nobody_left(self) -> None:
        """The last session has ended."""


class Audience:
    """Who is told. Events about a stream are told only after its Up: a newly attached daemon gets those one by one."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._announced: set[int] = set()
        self._announcing: asyncio.Task[None] | None = None

    def publish(self, event: Event) -> None:
        """Tell the attached daemon, if there is one. Never waits."""
        match event:
            case Up(stream=number):
                if self._announcing is not None:
                    return  # it will be met among the live streams
                self._announced.add(number)
            case Message(stream=number) if number not in self._announced:
                return  # its text is in the replay of the Up to come
            case Down(stream=number):
                if number not in self._announced:
                    return
                self._announced.discard(number)
        self._tell(event)

    def attach(self, writer: asyncio.StreamWriter) -> None:
        """From now on this daemon is told; nothing about streams until `announce`."""
        if self._writer is writer:
            return
        if self._writer is not None:
            log.info("another daemon attaches", extra={"event": "daemon.displaced"})
            self._tell(Displaced())
            self._writer.close()
        self._forget()
        self._writer = writer

    def announce(self, ready: Ready, streams: Streams) -> None:
        """Say Ready, then Up for each live stream that was not announced yet."""
        self._tell(ready)
        if self._announcing is None and self._writer is not None:
            self._announcing = spawn(self._introduce(self._writer, streams), name="carrier.announce")

    def detach(self, writer: asyncio.StreamWriter) -> None:
        if self._writer is writer:
            log.info("the daemon is gone, going on without", extra={"event": "daemon.gone"})
            self._forget()

    async def _introduce(self, writer: asyncio.StreamWriter, streams: Streams) -> None:
        # Thousands of streams, each with its replay: at the pace of the reader. Who comes up meanwhile is met at the end.
        while todo := [number for number in streams if number not in self._announced]:
            for number in todo:
                if (up := streams.up(number)) is not None:
                    self._announced.add(number)
                    self._tell(up)
                with contextlib.suppress(OSError):
                    await writer.drain()
        self._announcing = None

    def _forget(self) -> None:
        self._writer = None
        self._announced.clear()
        if self._announcing is not None:
            self._announcing.cancel()
            self._announcing = None

    def _tell(self, event: ipc.FromCarrier) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > UNREAD_MAX_BYTES:
            log.warning("the daemon does not read; hanging up on it", extra={"event": "daemon.stuck"})
            self._writer.transport.abort()
            self._forget()
            return
        self._writer.write(encode(event))


class ControlSocket(companion.ControlSocket):
    """The carrier's own."""

    def __init__(self, path: Path, carrier: Commanded, audience: Audience) -> None:
        """Raises HostError when another carrier has the path, or the path cannot be had."""
        super().__init__(path, "carrier")
        self._carrier = carrier
        self._audience = audience

    def _hello(self) -> Hello:
        return Hello(ipc.build(), os.getpid())

    def _on_left(self, writer: asyncio.StreamWriter) -> None:
        self._audience.detach(writer)

    def _on_nobody_left(self) -> None:
        self._carrier.on_nobody_left()

    def _obey(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            command = ipc.decode_command(line)
        except BadMessage as exc:
            log.warning("a command was not understood: %s", exc, extra={"event": "control.bad"})
            return
        if not isinstance(command, Configure):
            for answer in self._carrier.execute(command):
                writer.write(encode(answer))
            return
        self._audience.attach(writer)
        try:
            ready = self._carrier.configure(command)
        except RhizomeError as exc:
            log.warning("the configuration is rejected: %s", exc, extra={"event": "control.rejected"})
            self._audience.publish(Rejected(str(exc)))
            return
        self._audience.announce(ready, self._carrier.streams)
