"""Health, readiness, metrics and status over HTTP, on a TCP address and on a Unix socket beside the others of this host.

Nothing is stored here: every page is made from the status that the role gives at that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from agent.errors import HostError
from agent.kinds import HostPort
from agent.run import spawn
from agent.status import RoleStatus, to_json

log = logging.getLogger("rhizome.observability")

State = Callable[[], RoleStatus]

BACKLOG = 64


class Page(NamedTuple):
    status: int
    content_type: str
    body: bytes


def healthz(state: State) -> Page:
    """The process lives: its event loop came to this line."""
    return _text(200, "ok")


def readyz(state: State) -> Page:
    """Packets cross the tunnel, or the reason why not."""
    status = state()
    return _text(200 if status.verdict.ready else 503, f"{status.verdict.value}: {status.sentence}")


def status_page(state: State) -> Page:
    return Page(200, "application/json", json.dumps(to_json(state())).encode() + b"\n")


def metrics(state: State) -> Page:
    from agent.metrics import CONTENT_TYPE, exposition

    return Page(200, CONTENT_TYPE, exposition(state()))


PAGES: dict[str, Callable[[State], Page]] = {
    "/healthz": healthz,
    "/readyz": readyz,
    "/metrics": metrics,
    "/status": status_page,
}


def _text(status: int, text: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", text.encode() + b"\n")


class HealthServer:
    """Serves the pages of one role. `listen=None` and `path=None`: not there. Use as `async with`.

    The sockets are bound at once, so that an address in use is an error at start. The HTTP and metrics libraries are only
    imported when somebody asks for the first time: they take 0.2 s and 15 MiB, and a tunnel should not wait for them.
    """

    def __init__(self, listen: HostPort | None, state: State, *, path: Path | None = None) -> None:
        self._listen = listen
        self._state = state
        self._path = path
        self._sockets: list[socket.socket] = []
        self._inode = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HealthServer:
        """Raises HostError when an address cannot be had."""
        try:
            if self._listen is not None:
                self._sockets.append(_tcp(self._listen))
            if self._path is not None:
                self._sockets.append(_unix(self._path))
                self._inode = self._path.stat().st_ino
        except BaseException:
            self._close()
            raise
        self._task = spawn(self._serve(), name="health", vital=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._close()

    def _close(self) -> None:
        for sock in self._sockets:
            sock.close()
        if self._path is not None and self._inode:
            # A newer process may have put its own socket there already.
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()

    @property
    def port(self) -> int:
        """The TCP port that was bound (for a `listen` with port 0)."""
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    async def _serve(self) -> None:
        await self._first_caller()
        webserver = await asyncio.to_thread(import_module, "agent.webserver")
        async with webserver.serving(self._sockets, self._page):
            await asyncio.Event().wait()

    async def _first_caller(self) -> None:
        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        for sock in self._sockets:
            loop.add_reader(sock, called.set)
        try:
            await called.wait()
        finally:
            for sock in self._sockets:
                loop.remove_reader(sock)

    def _page(self, method: str, path: str) -> Page:
        if path not in PAGES:
            return _text(404, f"there are {', '.join(PAGES)}")
        if method not in ("GET", "HEAD"):
            return _text(405, "only GET")
        try:
            return PAGES[path](self._state)
        except Exception:
            log.exception("%s failed", path, extra={"event": "page.failed"})
            return _text(500, "this page cannot be made: see the log")


def _tcp(listen: HostPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        # [::] serves IPv4 too, as the listener of the tunnel does.
        return socket.create_server(listen, family=family, backlog=BACKLOG, dualstack_ipv6=listen.host == "::")
    except OSError as exc:
        raise HostError(
            f"cannot listen on {listen} for health: {exc.strerror}: choose another --health-listen", exc.errno or 0
        ) from exc


def _unix(path: Path) -> socket.socket:
    """The newest process wins the name: a daemon that replaces another one must not wait for it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        sock.bind(str(temporary))
        temporary.chmod(0o600)
        sock.listen(BACKLOG)
        temporary.replace(path)
    except OSError as exc:
        sock.close()
        raise HostError(f"cannot make the status socket {path}: {exc}: choose another --runtime-dir") from exc
    return sock
