"""A daemon's side of the lines: finds the running carrier or starts one, and starts it again when it dies.

async with-less life:  client = await CarrierClient.start(path, config)
                       async for event in client.events(): ...      client.send(command)
                       await client.detach()                        the carrier goes on
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from agent import logs
from agent.backoff import Backoff
from agent.carrier import ipc
from agent.carrier.api import Command, Configure, DialConfig, Down, Event, ListenConfig, Ready, Rejected, Stop, Up
from agent.errors import BadMessage, HostError, Retry, RhizomeError

log = logging.getLogger("rhizome.carrier.client")

#: From fork to the first line: an interpreter start on a busy machine.
START_TIMEOUT_S = 60.0  # a node that starts everything at once is slow
HELLO_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0
POLL_S = 0.01
#: Written but not read by the carrier: it is stuck, and is left to be replaced.
UNREAD_MAX_BYTES = 64 * 1024 * 1024
#: A carrier that dies as soon as it is started is started again less and less often.
RESPAWN_FIRST_S, RESPAWN_CAP_S = 0.05, 5.0
SETTLED_S = 10.0
#: Tries within one start, for a child that loses the race against another daemon's or finds the old one still leaving.
SPAWNS_MAX, SPAWN_PAUSE_S = 3, 0.2


#: Carriers that this process started and that have not been waited for. They are not stopped when it ends.
_children: set[int] = set()


class Displaced(RhizomeError):
    """Another daemon has attached to this carrier, and this one must not take it back."""

    retry = Retry.NEVER


class CarrierClient:
    """One attached daemon. Not more than one task iterates `events`, and as long as it does, the carrier is kept alive."""

    def __init__(self, path: Path, config: DialConfig | ListenConfig) -> None:
        self._path = path
        self._config = config
        self._line: _Line | None = None
        self._pending: deque[Event] = deque()
        self._up: set[int] = set()
        self._relay_port = 0
        self._since = 0.0
        self._detached = False

    @classmethod
    async def start(cls, path: Path, config: DialConfig | ListenConfig) -> CarrierClient:
        """Attach to the carrier at `path`, which is started when there is none (or none of our build).

        Raises HostError when it cannot be started, or rejects the configuration.
        """
        client = cls(path, config)
        _make_directory(path.parent)
        await client._attach()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await client._next()
            if isinstance(first, Rejected):
                raise HostError(first.detail)
            if first is None:
                raise HostError("the carrier process ended at once: its last lines on stderr say why")
        except TimeoutError as exc:
            await client.detach()
            raise HostError("the carrier process does not answer") from exc
        except BaseException:
            await client.detach()
            raise
        client._pending.append(first)
        return client

    async def events(self) -> AsyncIterator[Event]:
        """Everything from Ready on. Ends after `detach`. Raises Displaced when another daemon attaches.

        When the carrier dies, each of its streams is Down, and a new process follows with Ready and Up.
        """
        backoff = Backoff(RESPAWN_FIRST_S, RESPAWN_CAP_S)
        while not self._detached:
            if self._pending:
                yield self._pending.popleft()
                continue
            event = await self._next()
            if event is not None:
                yield event
            elif not self._detached:
                for number in sorted(self._up):
                    yield Down(number, "carrier", "the carrier process ended")
                self._up.clear()
                if _now() - self._since > SETTLED_S:
                    backoff.reset()
                await self._revive(backoff)

    def send(self, command: Command) -> None:
        """Say it to the carrier. What is said while there is none is lost, except for a Configure."""
        if isinstance(command, Configure):
            self._config = command.config
            self._relay_port = 0
        if self._line is not None:
            self._line.send(command)

    async def detach(self) -> None:
        """Leave; the carrier goes on without a daemon."""
        self._detached = True
        if self._line is not None:
            await self._line.close()
            self._line = None

    async def _attach(self) -> None:
        self._line = await _find_or_start(self._path)
        config = self._config
        if isinstance(config, DialConfig) and not config.relay_port and self._relay_port:
            # WireGuard's peer points there already.
            config = replace(config, relay_port=self._relay_port)
        self._line.send(Configure(config))
        self._since = _now()

    async def _revive(self, backoff: Backoff) -> None:
        log.warning("lost the carrier process; finding or starting one", extra={"event": "carrier.lost"})
        while not self._detached:
            if self._line is not None:
                await self._line.close()
                self._line = None
            await asyncio.sleep(backoff.next())
            try:
                await self._attach()
                return
            except HostError as exc:
                log.error("%s", exc, extra={"event": "carrier.start_failed"})

    async def _next(self) -> Event | None:
        """The next event, None at the end of the line."""
        while self._line is not None:
            try:
                event = await self._line.receive()
            except BadMessage as exc:
                log.error("the carrier is not understood: %s", exc, extra={"event": "carrier.bad"})
                return None
            match event:
                case None:
                    return None
                case ipc.Hello():
                    continue
                case ipc.Displaced():
                    raise Displaced("another daemon has taken over this carrier: is the same daemon started twice?")
                case Up(stream=number):
                    self._up.add(number)
                case Down(stream=number):
                    self._up.discard(number)
                case Ready(relay_port=port):
                    self._relay_port = port
            return event
        return None


async def stop_carrier(path: Path) -> bool:
    """End the carrier at `path` and remove its files. False when none was running. Raises HostError when it will not end."""
    line = await _connect(path)
    if line is not None:
        await line.end()
    for leftover in (path, path.with_name(path.name + ".lock")):
        leftover.unlink(missing_ok=True)
    return line is not None


# One connection


@dataclass(slots=True, eq=False)
class _Line:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int

    def send(self, command: Command) -> None:
        if self.writer.is_closing():
            return
        if self.writer.transport.get_write_buffer_size() > UNREAD_MAX_BYTES:
            self.writer.transport.abort()
            return
        self.writer.write(ipc.encode(command))

    async def receive(self) -> ipc.FromCarrier | None:
        """The next line, None at the end. Raises BadMessage."""
        try:
            line = await self.reader.readline()
        except OSError:
            return None
        except ValueError as exc:
            raise BadMessage("a line without an end") from exc
        return ipc.decode_event(line) if line.endswith(b"\n") else None

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def end(self) -> None:
        """Stop the process, whatever its build: by Stop, then SIGTERM, then SIGKILL. Raises HostError."""
        try:
            process = os.pidfd_open(self.pid)
        except OSError as exc:
            await self.close()
            if exc.errno == errno.ESRCH:
                return
            raise HostError(f"cannot end the carrier process {self.pid}: {exc.strerror}", exc.errno or 0) from exc
        try:
            self.send(Stop())
            for number in (signal.SIGTERM, signal.SIGKILL, None):
                if await _ended(process, STOP_TIMEOUT_S):
                    return
                if number is not None:
                    log.warning("the carrier does not stop, sending %s", number.name, extra={"event": "carrier.kill"})
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(process, number)
            raise HostError(f"the carrier process {self.pid} does not end, not even by SIGKILL")
        finally:
            os.close(process)
            await self.close()
            _reap(self.pid)


async def _ended(process: int, timeout_s: float) -> bool:
    """Whether the process of a pidfd ends in time. (A pidfd is readable from then on.)"""
    until = _now() + timeout_s
    while not select.select([process], [], [], 0)[0]:
        if _now() > until:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def _connect(path: Path) -> _Line | None:
    """None when nobody listens there. Raises HostError for a path that cannot be used or is somebody else's."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=ipc.LINE_MAX_BYTES)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as exc:
        raise HostError(f"cannot connect to {path}: {exc.strerror or exc}", exc.errno or 0) from exc
    pid, uid = ipc.peer_credentials(writer.get_extra_info("socket"))
    line = _Line(reader, writer, pid)
    if uid not in (0, os.geteuid()):
        await line.close()
        raise HostError(f"{path} belongs to a process of user {uid}: remove it, or choose another runtime directory")
    return line


async def _find_or_start(path: Path) -> _Line:
    """A line to a carrier of our build. Raises HostError."""
    until = _now() + START_TIMEOUT_S
    child: int | None = None
    spawned = 0
    while _now() < until:
        line = await _connect(path)
        if line is not None:
            if await _is_of_our_build(line):
                return line
            await line.end()
            if line.pid == child:
                raise HostError("the carrier process that was started has another build: is Rhizome installed twice?")
            until = _now() + START_TIMEOUT_S
        elif child is None:
            child = _spawn(path)
            spawned += 1
        elif (status := _reap(child)) is not None:
            if spawned == SPAWNS_MAX:
                raise HostError(f"the carrier process ends at once with {_words(status)}: its lines on stderr say why")
            child = None
            await asyncio.sleep(SPAWN_PAUSE_S)
        await asyncio.sleep(POLL_S)
    raise HostError(f"the carrier process does not come up at {path}: its lines on stderr say why")


async def _is_of_our_build(line: _Line) -> bool:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await line.receive()
    except (TimeoutError, BadMessage):
        hello = None
    if isinstance(hello, ipc.Hello) and hello.build == ipc.build():
        return True
    found = hello.build if isinstance(hello, ipc.Hello) else "one that does not answer"
    fields = {"event": "carrier.replaced", "pid": line.pid}
    log.info("replacing the carrier of another build (%s, ours is %s)", found, ipc.build(), extra=fields)
    return False


def _spawn(path: Path) -> int:
    """Start a carrier in a session of its own, so that no signal to ours reaches it. Returns its process id."""
    # -P: what lies in the working directory is not our code.
    argv = [sys.executable, "-P", "-m", "agent.carrier", "--socket", str(path), *_log_arguments()]
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    for pid in tuple(_children):
        _reap(pid)
    try:
        pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsid=True, setsigmask=())
    except OSError as exc:
        raise HostError(f"cannot start {sys.executable}: {exc.strerror}", exc.errno or 0) from exc
    _children.add(pid)
    log.info("started the carrier process", extra={"event": "carrier.spawned", "pid": pid})
    return pid


def _log_arguments() -> list[str]:
    """The carrier logs as we do."""
    handlers = logging.getLogger().handlers
    text = any(isinstance(handler.formatter, logs.TextFormatter) for handler in handlers)
    level = logging.getLevelName(logging.getLogger("rhizome").getEffectiveLevel()).lower()
    known = level if level in ("debug", "info", "warning", "error") else "info"
    return ["--log-format", "text" if text else "json", "--log-level", known]


def _reap(pid: int) -> int | None:
    """Take the exit status of an ended carrier that we started; None while it runs, or when somebody else started it."""
    if pid not in _children:
        return None
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        _children.discard(pid)
        return None
    if not ended:
        return None
    _children.discard(pid)
    return status


def _words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _now() -> float:
    return asyncio.get_running_loop().time()


def _make_directory(path: Path) -> None:
    """Only we may put sockets there: made 0700; one that exists must not be writable by others. Raises HostError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as exc:
        raise HostError(f"cannot make the runtime directory {path}: {exc.strerror}", exc.errno or 0) from exc
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise HostError(
            f"the runtime directory {path} can be written to by others: chmod 0700 it, or choose another one"
        )
