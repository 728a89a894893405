"""The HTTP side of the health endpoint: the only importer of aiohttp, loaded when somebody asks for the first time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from agent.observability import Page

#: One request per connection, whole within this; a kubelet gives up after a second, Prometheus after ten.
REQUEST_MAX_S = 10.0
CONNECTIONS_MAX = 64
HEAD_LINE_MAX = 4096
HEADERS_MAX = 64


class _Server(web.Server):
    """aiohttp's server with what it lacks: a deadline from the first byte on, and a bound on connections."""

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            asyncio.get_running_loop().call_later(REQUEST_MAX_S, transport.abort)


@asynccontextmanager
async def serving(sockets: Sequence[socket.socket], page: Callable[[str, str], Page]) -> AsyncIterator[None]:
    """Answer on listening sockets with `page(method, path)`. They are closed at the end."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        status, content_type, body = page(request.method, request.path)
        response = web.Response(status=status, body=body, headers={"Content-Type": content_type})
        response.force_close()
        return response

    server = _Server(
        answer, access_log=None, max_line_size=HEAD_LINE_MAX, max_field_size=HEAD_LINE_MAX, max_headers=HEADERS_MAX
    )
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        for sock in sockets:
            await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
