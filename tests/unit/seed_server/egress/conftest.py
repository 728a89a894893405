"""A running egress proxy on a Unix socket and on TLS, with targets on the loopback, which it may dial here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.carrier.api import TlsFiles
from agent.identity import Role
from agent.pki import issue, make_ca
from agent.run import cancel_all, spawn
from seed_server.egress import policy
from seed_server.egress.api import EgressConfig, UnixListen
from seed_server.egress.process import Egress
from seed_server.egress.proxy import Proxy

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Pki:
    server: TlsFiles
    client: TlsFiles
    shoot: TlsFiles


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    directory = tmp_path_factory.mktemp("pki")
    make_ca(directory, "shoot--a")
    return Pki(
        issue(directory, Role.SEED_SERVER, dns=("vpn-seed-server",)).files,
        issue(directory, Role.SIDECAR, "kube-apiserver").files,
        issue(directory, Role.SHOOT_CLIENT, "node-1").files,
    )


@dataclass
class Scene:
    """`config` is what runs; `ask` sends a request head over the Unix socket and gives the whole answer."""

    pki: Pki
    path: Path
    config: EgressConfig
    egress: Egress
    servers: list[asyncio.Server] = field(default_factory=list)
    tls_port: int = 0

    @property
    def proxy(self) -> Proxy:
        assert self.egress.proxy is not None
        return self.egress.proxy

    async def stop_targets(self) -> None:
        """All of them hang up."""
        for server in self.servers:
            server.close()
        targets = [task for task in asyncio.all_tasks() if task.get_name() == "target"]
        for task in targets:
            task.cancel()
        await asyncio.gather(*targets, return_exceptions=True)

    async def target(self, handler: Handler, host: str = "127.0.0.1") -> int:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass  # the client has left
            finally:
                writer.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            spawn(guarded(reader, writer), name="target")

        server = await asyncio.start_server(accept, host, 0)
        self.servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def unix(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def tls(self, files: TlsFiles | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cafile=self.pki.server.ca)
        client = files or self.pki.client
        context.load_cert_chain(client.certificate, client.key)
        return await asyncio.open_connection("127.0.0.1", self.tls_port, ssl=context, server_hostname="vpn-seed-server")

    async def ask(self, head: bytes) -> bytes:
        reader, writer = await self.unix()
        writer.write(head)
        answer = await reader.read()
        writer.close()
        return answer

    async def connect(self, port: int, host: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A tunnel over the Unix socket."""
        reader, writer = await self.unix()
        writer.write(head(host, port))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\n\r\n"
        return reader, writer

    def dials(self) -> dict[str, int]:
        return {f"{stage} {result}": count for stage, result, count in self.proxy.tally.rows()}

    async def nothing_is_open(self) -> None:
        async with asyncio.timeout(5):
            while self.proxy.open:
                await asyncio.sleep(0.005)


def head(host: str, port: int) -> bytes:
    """What kube-apiserver sends, byte for byte."""
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


@pytest.fixture
def connect_head() -> Callable[[str, int], bytes]:
    return head


@pytest.fixture
async def scene(tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(policy, "_NEVER", tuple(row for row in policy._NEVER if row[0] != "loopback"))
    path = tmp_path / "egress.sock"
    config = EgressConfig(
        addresses=(("127.0.0.1", 0),),
        tls=pki.server,
        unix=UnixListen(str(path), None, None, 0o600),
        shoot=("127.0.0.0/8", "::1/128"),
    )
    egress = Egress(asyncio.Event())
    ready = egress.configure(config)
    scene = Scene(pki, path, config, egress, tls_port=ready.addresses[0][1])
    try:
        yield scene
    finally:
        await scene.stop_targets()
        egress.shut()
        egress.drain_s = 0.0
        await egress.drain()
        await cancel_all()
