"""A companion's side of the lines: a Unix socket that any number of processes of our user may connect to."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Never

from agent.companion.lines import LINE_MAX_BYTES, Hello, encode, peer_credentials
from agent.errors import HostError
from agent.run import spawn

log = logging.getLogger("rhizome.companion")

SESSIONS_MAX = 8
#: A companion that no daemon has come to for so long is not waited for: who started it is gone.
NOBODY_CAME_S = 120.0


class ControlSocket(ABC):
    """Owns `path` and, through a lock beside it, the right to be its only companion. A companion overrides what it obeys."""

    def __init__(self, path: Path, name: str) -> None:
        """`name` is what kind of companion this is. Raises HostError when another one has the path, or it cannot be had."""
        self._path = path
        self._sessions: set[asyncio.StreamWriter] = set()
        self._lock = _lock(path.with_name(path.name + ".lock"), name)
        try:
            self._socket = _listen(path)
        except OSError as exc:
            os.close(self._lock)
            raise HostError(f"cannot listen on {path}: {exc.strerror or exc}", exc.errno or 0) from exc

    async def serve(self) -> Never:
        loop = asyncio.get_running_loop()
        loop.call_later(NOBODY_CAME_S, self._if_nobody_is_here)
        while True:
            try:
                conn, _ = await loop.sock_accept(self._socket)
            except OSError as exc:
                log.warning("cannot accept a daemon: %s", exc.strerror, extra={"event": "control.accept_failed"})
                await asyncio.sleep(0.5)
                continue
            if len(self._sessions) >= SESSIONS_MAX or peer_credentials(conn)[1] not in (0, os.geteuid()):
                conn.close()
                continue
            spawn(self._session(conn), name="control.session")

    def close(self) -> None:
        """Hang up and leave nothing on the file system. The lock goes last: whoever waits for it finds the path free."""
        for writer in self._sessions:
            writer.close()
        self._socket.close()
        self._path.unlink(missing_ok=True)
        self._path.with_name(self._path.name + ".lock").unlink(missing_ok=True)
        os.close(self._lock)

    async def _session(self, conn: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=conn, limit=LINE_MAX_BYTES)
        self._sessions.add(writer)
        try:
            writer.write(encode(self._hello()))
            while line := await reader.readline():
                self._obey(line, writer)
                await writer.drain()
        except (OSError, ValueError) as exc:
            # ValueError: a line without an end.
            log.info("a daemon's connection ends: %s", exc, extra={"event": "control.broken"})
        finally:
            self._sessions.discard(writer)
            self._on_left(writer)
            self._if_nobody_is_here()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _if_nobody_is_here(self) -> None:
        if not self._sessions:
            self._on_nobody_left()

    # What a companion says and does

    @abstractmethod
    def _hello(self) -> Hello:
        """The first line to whoever connects."""

    @abstractmethod
    def _obey(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """One command; its answers go to `writer`."""

    @abstractmethod
    def _on_left(self, writer: asyncio.StreamWriter) -> None:
        """A session has ended."""

    @abstractmethod
    def _on_nobody_left(self) -> None:
        """The last session has ended, or none ever began: go on, unless there is nothing to go on with."""


def _lock(path: Path, name: str) -> int:
    """A file descriptor that holds the lock until it is closed, by whatever end of this process. Raises HostError."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise HostError(f"cannot open {path}: {exc.strerror}", exc.errno or 0) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            raise HostError(f"another {name} has {path}", exc.errno or 0) from exc
        # The file may have been removed by its last holder between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(SESSIONS_MAX)
    except OSError:
        sock.close()
        raise
    return sock
