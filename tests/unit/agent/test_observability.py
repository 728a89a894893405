"""The health server: its pages, its bounds, and its socket."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent import webserver
from agent.errors import HostError
from agent.kinds import HostPort
from agent.observability import HealthServer
from agent.status import RoleStatus, Verdict, from_json

UP = RoleStatus("seed-server", "a", "rz-seed", Verdict.UP, "all is well", 3.0)
LOOPBACK = HostPort("127.0.0.1", 0)


async def ask(port: int, request: bytes) -> tuple[int, str, bytes]:
    """Status, head and body of one answer; the server must close the connection after it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head.decode().lower(), body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_the_pages() -> None:
    status = UP
    async with HealthServer(LOOPBACK, lambda: status) as server:
        assert (await ask(server.port, get("/healthz")))[::2] == (200, b"ok\n")
        assert (await ask(server.port, get("/readyz")))[::2] == (200, b"UP: all is well\n")
        code, head, body = await ask(server.port, get("/status"))
        assert code == 200 and "content-type: application/json" in head
        assert from_json(json.loads(body)) == UP
        code, head, body = await ask(server.port, get("/metrics"))
        assert code == 200 and "content-type: text/plain; version=" in head and b"rhizome_ready 1.0" in body
        status = replace(UP, verdict=Verdict.DOWN, sentence="no client is connected")
        assert (await ask(server.port, get("/readyz")))[::2] == (503, b"DOWN: no client is connected\n")
        assert (await ask(server.port, get("/healthz")))[0] == 200


async def test_the_unspecified_ipv6_address_serves_ipv4_too() -> None:
    """A kubelet probes the address of the pod, of whichever family."""
    async with HealthServer(HostPort("::", 0), lambda: UP) as server:
        assert (await ask(server.port, get("/healthz")))[0] == 200


async def test_what_is_not_there_is_said_in_words() -> None:
    async with HealthServer(LOOPBACK, lambda: UP) as server:
        code, _, body = await ask(server.port, get("/"))
        assert code == 404 and b"/readyz" in body
        assert (await ask(server.port, b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"))[0] == 405
        assert (await ask(server.port, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[::2] == (200, b"")


async def test_a_page_that_fails_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> RoleStatus:
        raise KeyError("secret detail")

    async with HealthServer(LOOPBACK, broken) as server:
        code, _, body = await ask(server.port, get("/status"))
        assert code == 500 and b"secret" not in body
        assert (await ask(server.port, get("/healthz")))[0] == 200
    assert "/status failed" in caplog.text


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    ],
)
async def test_heads_are_bounded(request_head: bytes) -> None:
    async with HealthServer(LOOPBACK, lambda: UP) as server:
        assert (await ask(server.port, request_head))[0] == 400
        assert (await ask(server.port, get("/healthz")))[0] == 200


async def test_nobody_who_comes_first_is_lost() -> None:
    """Those who ask while the libraries are being imported wait for their answer."""
    async with HealthServer(LOOPBACK, lambda: UP) as server:
        answers = await asyncio.gather(*(ask(server.port, get("/readyz")) for _ in range(20)))
    assert {code for code, _, _ in answers} == {200}


async def test_without_any_address_it_is_quiet() -> None:
    async with HealthServer(None, lambda: UP):
        await asyncio.sleep(0)


@pytest.mark.parametrize("start", [b"", b"GET /healthz HT", b"POST /status HTTP/1.1\r\nContent-Length: 9\r\n\r\n"])
async def test_a_slow_request_is_cut_off(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(webserver, "REQUEST_MAX_S", 0.05)
    async with HealthServer(LOOPBACK, lambda: UP) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(start)
        try:
            await asyncio.wait_for(reader.read(), 2)
        except ConnectionResetError:
            pass
        writer.close()


async def refused(port: int) -> bool:
    """Whether the connection ends without a byte."""
    try:
        return (await ask(port, get("/healthz")))[0] == 0
    except ConnectionError:
        return True


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "CONNECTIONS_MAX", 3)
    async with HealthServer(LOOPBACK, lambda: UP) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert await refused(server.port)
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.01)
        assert (await ask(server.port, get("/healthz")))[0] == 200


async def test_an_address_in_use_is_said_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*choose another --health-listen"):
            async with HealthServer(HostPort("127.0.0.1", port), lambda: UP):
                pass


async def unix(path: Path) -> int:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(get("/status"))
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return int(answer.split()[1])


async def test_the_socket_is_private_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rz.status"  # a socket has at most 107 characters
    async with HealthServer(None, lambda: UP, path=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await unix(path) == 200
        assert list(path.parent.iterdir()) == [path]
    assert list(path.parent.iterdir()) == []


async def test_the_newest_server_has_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "x.status"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    answers: list[str] = []

    def saying(name: str) -> Callable[[], RoleStatus]:
        def state() -> RoleStatus:
            answers.append(name)
            return UP

        return state

    async with HealthServer(None, saying("new"), path=path):
        async with HealthServer(None, saying("newer"), path=path):
            await unix(path)
        assert answers == ["newer"]
    old = HealthServer(None, saying("old"), path=path)
    await old.__aenter__()
    async with HealthServer(None, saying("newest"), path=path):
        await old.__aexit__(None, None, None)
        assert await unix(path) == 200
    assert answers == ["newer", "newest"]
    assert not path.exists()


async def test_a_directory_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="choose another --runtime-dir"):
        async with HealthServer(LOOPBACK, lambda: UP, path=tmp_path / "file" / "x.status"):
            pass
    with pytest.raises(HostError, match="AF_UNIX path too long"):
        async with HealthServer(None, lambda: UP, path=tmp_path / ("x" * 120)):
            pass
