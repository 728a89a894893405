"""The proxy as kube-apiserver meets it: heads, answers, bytes, ends, and nobody who is slow because of another."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from agent.carrier.crowd import Room
from agent.companion.lines import Drain
from seed_server.egress import front, pump
from seed_server.egress.api import Carries, EgressConfig, Known
from tests.unit.seed_server.egress.conftest import Scene

HeadOf = Callable[[str, int], bytes]
OK = b"HTTP/1.1 200 OK\r\n\r\n"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only after the client has ended."""
    data = await reader.read()
    writer.write(b"%d bytes" % len(data))
    writer.close()


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("way", ["unix", "tls"])
async def test_bytes_cross_both_ways(scene: Scene, connect_head: HeadOf, way: str) -> None:
    port = await scene.target(echo)
    reader, writer = await (scene.unix() if way == "unix" else scene.tls())
    writer.write(connect_head("127.0.0.1", port))
    assert await reader.readuntil(b"\r\n\r\n") == OK
    sent = bytes(range(256)) * 4096 * 3

    async def send() -> None:
        writer.write(sent)
        await writer.drain()

    sending = asyncio.ensure_future(send())
    assert await reader.readexactly(len(sent)) == sent
    await sending
    assert scene.proxy.pump.up_bytes >= len(sent)
    writer.close()
    await scene.nothing_is_open()


async def test_the_answer_after_the_clients_end_arrives(scene: Scene) -> None:
    reader, writer = await scene.connect(await scene.target(late))
    writer.write(b"x" * 100_000)
    writer.write_eof()
    assert await reader.read() == b"100000 bytes"
    writer.close()
    await scene.nothing_is_open()


async def test_the_client_may_speak_after_the_targets_end(scene: Scene) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def brief(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    reader, writer = await scene.connect(await scene.target(brief))
    writer.write(b"!")
    assert await reader.read() == b"bye"
    writer.write(b"still here")
    writer.write_eof()
    assert await heard == b"still here"
    writer.close()


async def test_what_came_with_the_head_is_not_lost(scene: Scene, connect_head: HeadOf) -> None:
    port = await scene.target(echo)
    reader, writer = await scene.unix()
    writer.write(connect_head("127.0.0.1", port) + b"early")
    assert await reader.readexactly(len(OK) + 5) == OK + b"early"
    writer.close()


async def test_a_target_that_speaks_first_waits_until_the_head_was_read(scene: Scene, connect_head: HeadOf) -> None:
    """kube-apiserver takes any byte that it reads with the head for an error."""

    async def greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n")
        await reader.read()
        writer.close()

    port = await scene.target(greeting)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(scene.path))
        client.sendall(connect_head("127.0.0.1", port))
        await asyncio.sleep(0.15)  # long enough for the greeting to be there
        assert client.recv(4096) == OK
        client.setblocking(False)
        async with asyncio.timeout(2):
            assert await asyncio.get_running_loop().sock_recv(client, 4096) == b"SSH-2.0-x\r\n"


async def test_a_reset_is_passed_on(scene: Scene, connect_head: HeadOf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        reader, writer = await scene.unix()
        writer.write(connect_head("127.0.0.1", listener.getsockname()[1]))
        target, _ = await loop.sock_accept(listener)
        assert await reader.readuntil(b"\r\n\r\n") == OK
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        target.close()
        assert await reader.read() == b""
        writer.close()
    await scene.nothing_is_open()


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"405 only CONNECT is served here, not GET"),
        (b"CONNECT 127.1:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"400 an IPv4 address is four decimal numbers"),
        (b"CONNECT 9.9.9.9:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"403 9.9.9.9 is in none of the shoot's ranges"),
        (b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"403 169.254.169.254 is a cloud's metadata service"),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"403 localhost is this host"),
        (b"CONNECT node-1:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"502 node-1 is a name, and no DNS of the shoot"),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"502 127.0.0.1:1 refused the connection"),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", b"400 "),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"400 a CONNECT has no content"),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"400 a CONNECT has no content"),
        (b"CONNECT 127.0.0.1:1 HTTP/3.0\r\nHost: a\r\n\r\n", b"400 "),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n b\r\nX" + b"x" * 20_000, b"400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400 "),
    ],
)  # fmt: skip
async def test_every_refusal_is_one_line_with_its_cause(scene: Scene, head: bytes, answer: bytes) -> None:
    said = await scene.ask(head)
    assert said.startswith(b"HTTP/1.1 " + answer), said
    assert said.endswith(b"\r\n\r\n")
    assert said.count(b"\r\n") == 2
    await scene.nothing_is_open()


async def test_slow_heads_are_answered_and_pushed_out(
    scene: Scene, connect_head: HeadOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HEAD_TIMEOUT_S", 0.1)
    assert (await scene.ask(b"CONNECT 127")).startswith(b"HTTP/1.1 400 no complete request within 0.1 s")
    monkeypatch.setattr(front, "HEAD_TIMEOUT_S", 60)
    scene.egress.configure(_with(scene.config, max_heads=4))
    port = await scene.target(echo)
    crowd = [await scene.unix() for _ in range(12)]
    reader, writer = await scene.unix()
    writer.write(connect_head("127.0.0.1", port))
    async with asyncio.timeout(5):
        assert await reader.readuntil(b"\r\n\r\n") == OK
    assert scene.dials()["head pressure"] >= 8
    for _, other in [*crowd, (reader, writer)]:
        other.close()


async def test_at_capacity_it_says_so_at_once(scene: Scene, connect_head: HeadOf) -> None:
    scene.egress.configure(_with(scene.config, max_connections=2))
    port = await scene.target(deaf)
    tunnels = [await scene.connect(port) for _ in range(2)]
    answer = await scene.ask(connect_head("127.0.0.1", port))
    assert answer == b"HTTP/1.1 503 at capacity: 2 connections are open\r\n\r\n"
    for _, writer in tunnels:
        writer.close()


async def test_a_target_that_does_not_answer_is_a_504_in_time(scene: Scene, connect_head: HeadOf) -> None:
    """A listener whose queue is full drops SYNs, as a host does that is not there."""
    scene.egress.configure(_with(scene.config, dial_timeout_s=0.3))
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        began = time.monotonic()
        answer = await scene.ask(connect_head("127.0.0.1", full.getsockname()[1]))
        assert answer.startswith(b"HTTP/1.1 504 no answer from 127.0.0.1:"), answer
        assert time.monotonic() - began < 2


async def test_what_is_known_to_be_down_is_refused_at_once(scene: Scene, connect_head: HeadOf) -> None:
    port = await scene.target(echo)
    scene.egress.execute(Known("no client", 42.0))
    answer = await scene.ask(connect_head("127.0.0.1", port))
    assert answer == b"HTTP/1.1 503 tunnel down: no client for 42s\r\n\r\n"
    scene.egress.execute(Carries("node-1", ("127.0.0.0/8",)))
    scene.egress.execute(Known())
    _, writer = await scene.connect(port)
    writer.close()
    scene.egress.forget()
    _, writer = await scene.connect(port)
    writer.close()


async def test_a_dial_ends_when_the_tunnel_goes_down_meanwhile(scene: Scene, connect_head: HeadOf) -> None:
    scene.egress.execute(Carries("node-1", ("127.0.0.0/8",)))
    scene.egress.execute(Known())
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        asking = asyncio.ensure_future(scene.ask(connect_head("127.0.0.1", full.getsockname()[1])))
        await asyncio.sleep(0.05)
        scene.egress.execute(Carries("node-1", ("127.0.0.0/8",), "node-1 has not answered", 4.0))
        scene.egress.execute(Known())
        async with asyncio.timeout(1):
            answer = await asking
    assert answer.startswith(b"HTTP/1.1 503 tunnel down: node-1 has not answered for 4"), answer


@pytest.mark.parametrize("way", ["unix", "tls"])
async def test_nobody_waits_for_a_client_or_a_target_that_stopped(scene: Scene, connect_head: HeadOf, way: str) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    stuck = []
    for handler in (flood, deaf):
        reader, writer = await (scene.unix() if way == "unix" else scene.tls())
        writer.write(connect_head("127.0.0.1", await scene.target(handler)))
        await reader.readuntil(b"\r\n\r\n")
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        writer.write(bytes(16 * 1024 * 1024))
        stuck.append(writer)
    await asyncio.sleep(0.2)
    before = scene.proxy.pump.up_bytes, scene.proxy.pump.down_bytes
    port = await scene.target(echo)
    for _ in range(20):
        async with asyncio.timeout(1):
            reader, writer = await scene.connect(port)
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            writer.close()
    # Back-pressure is real: what nobody reads is not read on.
    after = scene.proxy.pump.up_bytes, scene.proxy.pump.down_bytes
    assert after[0] - before[0] == after[1] - before[1] == 80
    for writer in stuck:
        writer.transport.abort()
    await scene.stop_targets()
    await scene.nothing_is_open()


@pytest.mark.parametrize("who", ["shoot", "nobody"])
async def test_who_may_not_use_it_over_tls(scene: Scene, connect_head: HeadOf, who: str) -> None:
    if who == "shoot":
        reader, writer = await scene.tls(scene.pki.shoot)
        writer.write(connect_head("127.0.0.1", 1))
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 403 a shoot client's certificate"), answer
        writer.close()
        return
    with socket.create_connection(("127.0.0.1", scene.tls_port)) as plain:
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(plain, connect_head("127.0.0.1", 1))
        data = await asyncio.get_running_loop().sock_recv(plain, 100)
    assert not data.startswith(b"HTTP")
    assert scene.dials() == {"tls not_tls": 1}


async def test_the_first_stop_drains(scene: Scene) -> None:
    reader, writer = await scene.connect(await scene.target(echo))
    scene.egress.execute(Drain(30.0))
    assert scene.egress.stop.is_set()
    scene.egress.shut()
    draining = asyncio.ensure_future(scene.egress.drain())
    with pytest.raises(OSError, match=r"refused|No such file"):
        await scene.unix()
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still"
    assert not draining.done()
    writer.close()
    async with asyncio.timeout(2):
        await draining


async def test_half_closed_and_silent_for_long_is_closed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "HALF_CLOSED_S", 0.05)
    monkeypatch.setattr(pump, "_SWEEP_S", 0.02)
    port = await scene.target(deaf)
    scene.proxy.pump._sweeping.cancel()
    sweep = asyncio.ensure_future(scene.proxy.pump._sweep())
    whole, half = await scene.connect(port), await scene.connect(port)
    half[1].write_eof()
    async with asyncio.timeout(2):
        assert await half[0].read() == b""
    assert scene.proxy.open == 1
    sweep.cancel()
    for _, writer in (whole, half):
        writer.close()


def _with(config: EgressConfig, **changes: Any) -> EgressConfig:
    from dataclasses import replace

    return replace(config, **changes)


async def test_tls_that_is_turned_off_meanwhile_ends_the_visit(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        door = scene.egress._front
        assert door is not None
        door._credentials = None
        room = Room(1)
        door._welcome(accepted, room)
        async with asyncio.timeout(2):
            while len(room):
                await asyncio.sleep(0.005)
    assert accepted.fileno() == -1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
