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
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from aiohttp import web

from agent.errors import HostError
from agent.kinds import HostPort
from agent.metrics import CONTENT_TYPE, exposition
from agent.status import RoleStatus, to_json

log = logging.getLogger("rhizome.observability")

State = Callable[[], RoleStatus]

#: One request per connection, whole within this; a kubelet gives up after a second, Prometheus after ten.
REQUEST_MAX_S = 10.0
CONNECTIONS_MAX = 64
HEAD_LINE_MAX = 4096
HEADERS_MAX = 64


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
    return Page(200, CONTENT_TYPE, exposition(state()))


PAGES: dict[str, Callable[[State], Page]] = {
    "/healthz": healthz,
    "/readyz": readyz,
    "/metrics": metrics,
    "/status": status_page,
}


def _text(status: int, text: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", text.encode() + b"\n")


class _Server(web.Server):
    """aiohttp's server with what it lacks: a deadline from the first byte on, and a bound on connections."""

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            asyncio.get_running_loop().call_later(REQUEST_MAX_S, transport.abort)


class HealthServer:
    """Serves the pages of one role. `listen=None` and `path=None`: not there. Use as `async with`."""

    def __init__(self, listen: HostPort | None, state: State, *, path: Path | None = None) -> None:
        self._listen = listen
        self._state = state
        self._path = path
        self._runner: web.ServerRunner | None = None
        self._inode = 0

    async def __aenter__(self) -> HealthServer:
        """Raises HostError when an address cannot be had."""
        server = _Server(
            self._answer,
            access_log=None,
            max_line_size=HEAD_LINE_MAX,
            max_field_size=HEAD_LINE_MAX,
            max_headers=HEADERS_MAX,
        )
        self._runner = web.ServerRunner(server)
        await self._runner.setup()
        try:
            if self._listen is not None:
                await self._serve(self._tcp(self._listen))
            if self._path is not None:
                await self._serve(self._unix(self._path))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None and self._inode:
            # A newer process may have put its own socket there already.
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The TCP port that was bound (for a `listen` with port 0)."""
        assert self._runner is not None and self._listen is not None
        bound: int = self._runner.addresses[0][1]
        return bound

    async def _serve(self, sock: socket.socket) -> None:
        assert self._runner is not None
        await web.SockSite(self._runner, sock).start()

    def _tcp(self, listen: HostPort) -> socket.socket:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        try:
            return socket.create_server(listen, family=family, backlog=CONNECTIONS_MAX)
        except OSError as exc:
            raise HostError(
                f"cannot listen on {listen} for health: {exc.strerror}: choose another --health-listen", exc.errno or 0
            ) from exc

    def _unix(self, path: Path) -> socket.socket:
        """The newest process wins the name: a daemon that replaces another one must not wait for it."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            sock.bind(str(temporary))
            temporary.chmod(0o600)
            sock.listen(CONNECTIONS_MAX)
            self._inode = temporary.stat().st_ino
            temporary.replace(path)
        except OSError as exc:
            sock.close()
            raise HostError(f"cannot make the status socket {path}: {exc}: choose another --runtime-dir") from exc
        return sock

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        page = self._page(request.method, request.path)
        response = web.Response(status=page.status, body=page.body, headers={"Content-Type": page.content_type})
        response.force_close()
        return response

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
