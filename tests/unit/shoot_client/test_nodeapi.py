"""Following a Node object, against a small API server over real TLS."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiohttp import web

from agent.errors import ConfigError
from agent.run import cancel_all
from lab.loopback import Pki
from shoot_client import nodeapi
from shoot_client.nodeapi import NodeApi, NodeFollower
from shoot_client.nodeobject import NodeFacts

NAME, TOKEN = "n1", "secret-token"


def node(address: str, version: int = 1) -> dict[str, Any]:
    listed = [{"type": "InternalIP", "address": address}]
    return {"metadata": {"name": NAME, "resourceVersion": str(version)}, "spec": {}, "status": {"addresses": listed}}


@dataclass
class Server:
    """Answers like kube-apiserver. `refuses` are statuses to answer with first; `events` are sent to whoever watches."""

    node: dict[str, Any]
    refuses: list[int] = field(default_factory=list)
    events: asyncio.Queue[dict[str, Any] | None] = field(default_factory=asyncio.Queue)
    asked: list[str] = field(default_factory=list)
    port: int = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if self.refuses:
            return web.json_response({"kind": "Status"}, status=self.refuses.pop(0))
        return web.json_response(self.node)

    async def watch(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        assert request.query["fieldSelector"] == f"metadata.name={NAME}" and request.query["watch"].lower() == "true"
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        while (event := await self.events.get()) is not None:
            text = json.dumps(event).encode() + b"\n"
            await response.write(text[:20])
            await response.write(text[20:])
        return response

    def change(self, kind: str, item: dict[str, Any]) -> None:
        self.events.put_nowait({"type": kind, "object": item})


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[Server]:
    files = pki.server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    made = Server(node("10.250.0.7"))
    app = web.Application()
    app.add_routes([web.get(f"/api/v1/nodes/{NAME}", made.get), web.get("/api/v1/nodes", made.watch)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        made.events.put_nowait(None)
        await runner.cleanup()
        await asyncio.sleep(0.05)  # TLS takes its leave


class Kubeconfig(Protocol):
    def __call__(self, port: int, token: str = ..., ca: str = ...) -> Path: ...


@pytest.fixture
def kubeconfig(tmp_path: Path, pki: Pki) -> Kubeconfig:
    def write(port: int, token: str = TOKEN, ca: str = str(pki.directory / "ca.crt")) -> Path:
        path = tmp_path / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [
                {"name": "c", "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": ca}}
            ],
            "users": [{"name": "c", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        }
        path.write_text(json.dumps(config))
        return path

    return write


@dataclass
class Followed:
    facts: list[NodeFacts] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_facts(self, facts: NodeFacts) -> None:
        self.facts.append(facts)
        self.changed.set()

    async def until(self, address: str) -> None:
        async with asyncio.timeout(15):
            while not self.facts or [str(p) for p in self.facts[-1].offer.nodes] != [f"{address}/32"]:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def follow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[Path], Followed]]:
    monkeypatch.setattr(nodeapi, "RETRY_FIRST_S", 0.02)
    monkeypatch.setattr(nodeapi, "CONNECT_TIMEOUT_S", 4.0)
    tasks = []

    def start(kubeconfig: Path) -> Followed:
        made = Followed()
        tasks.append(asyncio.ensure_future(NodeFollower(NodeApi(NAME, kubeconfig), made.on_facts).run()))
        return made

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=2)
    for thread in threading.enumerate():
        if thread.name == "node-object":
            await asyncio.to_thread(thread.join, 2)
            assert not thread.is_alive(), "it is woken, wherever it waits"
    await cancel_all()


async def test_changes_are_followed_and_what_does_not_matter_is_not_told(
    server: Server, kubeconfig: Kubeconfig, follow: Callable[[Path], Followed]
) -> None:
    found = follow(kubeconfig(server.port))
    await found.until("10.250.0.7")
    server.change("MODIFIED", node("10.250.0.7", 2))
    server.change("BOOKMARK", {"metadata": {"resourceVersion": "3"}})
    server.change("MODIFIED", node("10.250.0.8", 4))
    await found.until("10.250.0.8")
    server.change("DELETED", node("10.250.0.9", 5))
    server.node = node("10.250.0.10", 6)
    server.events.put_nowait(None)
    await found.until("10.250.0.10")
    assert len(found.facts) == 3
    assert "resourceVersion=1" in server.asked[1] and server.asked[0] == f"/api/v1/nodes/{NAME}"


async def test_a_place_in_the_history_that_is_gone_means_to_begin_anew(
    server: Server,
    kubeconfig: Kubeconfig,
    follow: Callable[[Path], Followed],
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = follow(kubeconfig(server.port))
    await found.until("10.250.0.7")
    server.node = node("10.250.0.8", 9)
    server.change("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await found.until("10.250.0.8")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("status", "words"), [(403, "grant `get` and `watch`"), (404, "`node_name`"), (500, "answers 500")]
)
async def test_a_refusal_is_told_once_and_asked_again(
    server: Server,
    kubeconfig: Kubeconfig,
    follow: Callable[[Path], Followed],
    caplog: pytest.LogCaptureFixture,
    status: int,
    words: str,
) -> None:
    server.refuses = [status] * 3
    await follow(kubeconfig(server.port)).until("10.250.0.7")
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and words in told[0] and "nothing is known of this node yet" in told[0]


@pytest.mark.parametrize("trouble", ["token", "nobody", "authority", "silence"])
async def test_an_api_server_that_cannot_be_asked_is_no_end(
    server: Server,
    pki: Pki,
    kubeconfig: Kubeconfig,
    follow: Callable[[Path], Followed],
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    cases: dict[str, tuple[Callable[[], Path], str]] = {
        "token": (lambda: kubeconfig(server.port, token="another"), "does not accept our token"),
        "nobody": (lambda: kubeconfig(1), "refused"),
        "authority": (lambda: kubeconfig(server.port, ca=pki.server().certificate), "certificate verify failed"),
        "silence": (lambda: kubeconfig(port), "timed out"),
    }
    path, words = cases[trouble]
    found = follow(path())
    async with asyncio.timeout(15):
        while words not in caplog.text:
            await asyncio.sleep(0.02)
    assert not found.facts and TOKEN not in caplog.text
    silent.close()


async def test_what_was_known_stays_while_the_api_server_is_away(
    server: Server,
    kubeconfig: Kubeconfig,
    follow: Callable[[Path], Followed],
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = follow(kubeconfig(server.port))
    await found.until("10.250.0.7")
    server.refuses = [500] * 2
    server.node = node("10.250.0.8")
    server.events.put_nowait(None)
    await found.until("10.250.0.8")
    assert "what is known of this node stays" in caplog.text
    assert len(found.facts) == 2


def test_credentials_that_are_none_are_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kubeconfig"):
        NodeApi(NAME, tmp_path / "absent")
    with pytest.raises(ConfigError, match="service account"):
        NodeApi(NAME, None)


@pytest.mark.parametrize("read", [nodeapi._whole, lambda response: list(nodeapi._lines(response))])
def test_a_server_that_never_ends_an_object_fills_no_memory(read: Callable[[Any], object]) -> None:
    class Endless:
        sent = 0

        def iter_raw(self) -> Iterator[bytes]:
            while True:
                self.sent += 1 << 20
                yield b"x" * (1 << 20)

    response = Endless()
    with pytest.raises(ValueError, match=r"too long|without an end"):
        read(response)
    assert response.sent <= nodeapi.OBJECT_MAX_BYTES + (1 << 20)
