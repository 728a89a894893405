"""A daemon's side of the lines to a companion: a process of ours that outlives the daemon that started it.

Finds the one that listens on a path, or starts it; one of another build is replaced.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import logs
from agent.companion.lines import LINE_MAX_BYTES, Hello, encode, peer_credentials
from agent.errors import BadMessage, HostError

log = logging.getLogger("rhizome.companion")

#: From fork to the first line: an interpreter start on a busy machine.
START_TIMEOUT_S = 60.0  # a node that starts everything at once is slow
HELLO_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0
POLL_S = 0.01
#: Written but not read by the companion: it is stuck, and is left to be replaced.
UNREAD_MAX_BYTES = 64 * 1024 * 1024
#: Tries within one start, for a child that loses the race against another daemon's or finds the old one still leaving.
SPAWNS_MAX, SPAWN_PAUSE_S = 3, 0.2


#: Companions that this process started and that have not been waited for. They are not stopped when it ends.
_children: set[int] = set()


@dataclass(frozen=True, slots=True)
class Companion:
    """A kind of companion process. `stop` is the command that ends it; `retires`: after that it has work to finish, and
    lets go of its path first, so that its successor need not wait."""

    name: str
    module: str
    build: Callable[[], str]
    decode: Callable[[bytes], Any]
    stop: object
    retires: bool = False


async def stop_companion(kind: Companion, path: Path) -> bool:
    """End the one at `path` and remove its files. False when none was running. Raises HostError when it will not end."""
    line = await connect(kind, path)
    if line is not None:
        await line.end()
    for leftover in (path, path.with_name(path.name + ".lock")):
        leftover.unlink(missing_ok=True)
    return line is not None


# One connection


async def drain_companion(kind: Companion, path: Path, seconds: float) -> bool:
    """Ask the one at `path` to finish what is open, and wait until it has ended; if it takes much longer than `seconds`, it
    is ended. False when none was running. Raises HostError."""
    line = await connect(kind, path)
    if line is None:
        return False
    try:
        process = os.pidfd_open(line.pid)
    except OSError:
        await line.close()
        return True
    try:
        line.send(kind.stop)
        if await _ended(process, seconds + STOP_TIMEOUT_S):
            await line.close()
        else:
            await line.end()
    finally:
        os.close(process)
    return True


@dataclass(slots=True, eq=False)
class Line:
    """A connection to a companion."""

    kind: Companion
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int

    def send(self, command: object) -> None:
        """Never waits; a companion that does not read is hung up on."""
        if self.writer.is_closing():
            return
        if self.writer.transport.get_write_buffer_size() > UNREAD_MAX_BYTES:
            self.writer.transport.abort()
            return
        self.writer.write(encode(command))

    async def receive(self) -> Any:
        """The next line, None at the end. Raises BadMessage."""
        try:
            line = await self.reader.readline()
        except OSError:
            return None
        except ValueError as exc:
            raise BadMessage("a line without an end") from exc
        return self.kind.decode(line) if line.endswith(b"\n") else None

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def retire(self) -> None:
        """Ask the process to stop and wait until it has let go of its path; what it still does, it does alone."""
        self.send(self.kind.stop)
        with contextlib.suppress(TimeoutError, OSError, ValueError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                while await self.reader.readline():
                    pass
                await self.close()
                return
        await self.end()

    async def end(self) -> None:
        """Stop the process, whatever its build: by Stop, then SIGTERM, then SIGKILL. Raises HostError."""
        try:
            process = os.pidfd_open(self.pid)
        except OSError as exc:
            await self.close()
            if exc.errno == errno.ESRCH:
                return
            raise HostError(
                f"cannot end the {self.kind.name} process {self.pid}: {exc.strerror}", exc.errno or 0
            ) from exc
        try:
            self.send(self.kind.stop)
            for number in (signal.SIGTERM, signal.SIGKILL, None):
                if await _ended(process, STOP_TIMEOUT_S):
                    return
                if number is not None:
                    log.warning(
                        "the %s does not stop, sending %s",
                        self.kind.name,
                        number.name,
                        extra={"event": "companion.kill"},
                    )
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(process, number)
            raise HostError(f"the {self.kind.name} process {self.pid} does not end, not even by SIGKILL")
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


async def connect(kind: Companion, path: Path) -> Line | None:
    """None when nobody listens there. Raises HostError for a path that cannot be used or is somebody else's."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_MAX_BYTES)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as exc:
        raise HostError(f"cannot connect to {path}: {exc.strerror or exc}", exc.errno or 0) from exc
    pid, uid = peer_credentials(writer.get_extra_info("socket"))
    line = Line(kind, reader, writer, pid)
    if uid not in (0, os.geteuid()):
        await line.close()
        raise HostError(f"{path} belongs to a process of user {uid}: remove it, or choose another runtime directory")
    return line


async def find_or_start(kind: Companion, path: Path) -> Line:
    """A line to a companion of our build. Raises HostError."""
    until = _now() + START_TIMEOUT_S
    child: int | None = None
    spawned = 0
    while _now() < until:
        line = await connect(kind, path)
        if line is not None:
            if await _is_of_our_build(line):
                if child is not None and line.pid != child:
                    _end_child(child)  # somebody else's was faster
                return line
            await (line.retire() if kind.retires else line.end())
            if line.pid == child:
                raise HostError(
                    f"the {kind.name} process that was started has another build: is Rhizome installed twice?"
                )
            until = _now() + START_TIMEOUT_S
        elif child is None:
            child = _spawn(kind, path)
            spawned += 1
        elif (status := _reap(child)) is not None:
            if spawned == SPAWNS_MAX:
                raise HostError(
                    f"the {kind.name} process ends at once with {_words(status)}: its lines on stderr say why"
                )
            child = None
            await asyncio.sleep(SPAWN_PAUSE_S)
        await asyncio.sleep(POLL_S)
    raise HostError(f"the {kind.name} process does not come up at {path}: its lines on stderr say why")


async def _is_of_our_build(line: Line) -> bool:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await line.receive()
    except (TimeoutError, BadMessage):
        hello = None
    if isinstance(hello, Hello) and hello.build == line.kind.build():
        return True
    found = hello.build if isinstance(hello, Hello) else "one that does not answer"
    fields = {"event": f"{line.kind.name}.replaced", "pid": line.pid}
    log.info(
        "replacing the %s of another build (%s, ours is %s)", line.kind.name, found, line.kind.build(), extra=fields
    )
    return False


def _spawn(kind: Companion, path: Path) -> int:
    """Start a companion in a session of its own, so that no signal to ours reaches it. Returns its process id."""
    # -P: what lies in the working directory is not our code.
    argv = [sys.executable, "-P", "-m", kind.module, "--socket", str(path), *log_arguments()]
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    for pid in tuple(_children):
        _reap(pid)
    try:
        pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsid=True, setsigmask=())
    except OSError as exc:
        raise HostError(f"cannot start {sys.executable}: {exc.strerror}", exc.errno or 0) from exc
    _children.add(pid)
    log.info("started the %s process", kind.name, extra={"event": f"{kind.name}.spawned", "pid": pid})
    return pid


def _end_child(pid: int) -> None:
    if pid in _children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def log_arguments() -> list[str]:
    """The companion logs as we do."""
    handlers = logging.getLogger().handlers
    text = any(isinstance(handler.formatter, logs.TextFormatter) for handler in handlers)
    level = logging.getLevelName(logging.getLogger("rhizome").getEffectiveLevel()).lower()
    known = level if level in ("debug", "info", "warning", "error") else "info"
    return ["--log-format", "text" if text else "json", "--log-level", known]


def _reap(pid: int) -> int | None:
    """Take the exit status of an ended companion that we started; None while it runs, or when somebody else started it."""
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


def make_directory(path: Path) -> None:
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
