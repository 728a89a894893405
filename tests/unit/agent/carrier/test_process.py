"""What a carrier process does, run as a coroutine here: told, asked, taken over and lied to through its socket.

tests/netns/test_carrier_process.py kills and replaces real ones.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.carrier import ipc
from agent.carrier.api import (
    Configure,
    DialConfig,
    Down,
    GetStats,
    ListenConfig,
    Message,
    Proxy,
    Ready,
    Redial,
    Send,
    Stats,
    Turned,
    Up,
)
from agent.carrier.client import CarrierClient, Displaced
from agent.carrier.process import run
from agent.companion import lines
from agent.errors import HostError
from agent.run import cancel_all, spawn
from lab.loopback import Daemon, Echo, Pinger, Pki, dial_config, listen_config


@dataclass
class Scene:
    """A running server's and a client's carrier, what they are to be told, and the WireGuards beside them."""

    directory: Path
    listen: ListenConfig
    dial: DialConfig
    pinger: Pinger
    echo: Echo

    @property
    def server_path(self) -> Path:
        return self.directory / "server.carrier"

    @property
    def client_path(self) -> Path:
        return self.directory / "client.carrier"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def files(directory: Path, pattern: str = "*") -> list[Path]:
    return list(directory.glob(pattern))


@asynccontextmanager
async def carrier(path: Path) -> AsyncIterator[asyncio.Event]:
    """A carrier that finds itself configured by whoever connects first. The event stops it."""
    stop = asyncio.Event()
    running = spawn(run(path, stop), name="test.carrier")
    async with asyncio.timeout(5):
        while not files(path.parent, path.name):
            await asyncio.sleep(0.001)
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait((running,))


@pytest.fixture
async def scene(pki: Pki, runtime: Path) -> AsyncIterator[Scene]:
    with Echo() as echo, Pinger() as pinger:
        listen = listen_config(pki.server(), echo.port)
        dial = dial_config(pki.client(), pinger.port, listen.addresses[0])
        made = Scene(runtime, listen, dial, pinger, echo)
        async with carrier(made.server_path), carrier(made.client_path):
            yield made
        await cancel_all()
    assert files(runtime) == []


async def test_everything_that_a_daemon_says_and_hears(scene: Scene) -> None:
    async with Daemon(scene.server_path, scene.listen) as server, Daemon(scene.client_path, scene.dial) as client:
        ready = await client.record.until(Ready)
        up = await client.record.until(Up)
        await scene.pinger.exchange(ready.relay_port)
        client.client.send(Send(up.stream, '{"type":"enroll"}'))
        heard = await server.record.until(Message)
        server.client.send(Send(heard.stream, '{"type":"grant"}'))
        assert (await client.record.until(Message)).text == '{"type":"grant"}'
        client.client.send(GetStats())
        server.client.send(GetStats())
        stats = await client.record.until(Stats)
        assert stats.streams == 1 and stats.tx_packets >= 1 and stats.rx_packets >= 1
        await server.record.until(Stats)
        assert (await server.record.until(Turned)).counts == ()
        client.client.send(Redial())
        await client.record.until(Up, 2)


async def test_the_newest_daemon_wins_and_the_other_does_not_fight(scene: Scene) -> None:
    async with Daemon(scene.server_path, scene.listen):
        first = await CarrierClient.start(scene.client_path, scene.dial)
        async with Daemon(scene.client_path, scene.dial) as second:
            with pytest.raises(Displaced, match="is the same daemon started twice"):
                async for _ in first.events():
                    pass
            await second.record.until(Up)
            first.send(Redial())
            await first.detach()


async def test_an_adopted_carrier_keeps_what_runs_when_the_new_configuration_is_rejected(scene: Scene) -> None:
    async with Daemon(scene.server_path, scene.listen), Daemon(scene.client_path, scene.dial) as client:
        await client.record.until(Up)
        bad = replace(scene.listen, tls=replace(scene.listen.tls, key="/nonexistent"))
        with pytest.raises(HostError, match="cannot read /nonexistent"):
            await CarrierClient.start(scene.server_path, bad)
        await scene.pinger.exchange(client.record.last(Ready).relay_port)
        assert not client.record.of(Down)


async def test_a_changed_configuration_is_changed_over_to(scene: Scene, pki: Pki) -> None:
    other = listen_config(pki.server(), scene.echo.port)
    async with (
        carrier(scene.directory / "other.carrier"),
        Daemon(scene.server_path, scene.listen),
        Daemon(scene.directory / "other.carrier", other),
        Daemon(scene.client_path, scene.dial) as client,
    ):
        await client.record.until(Up)
        client.client.send(Configure(replace(scene.dial, port=other.addresses[0][1])))
        ready = await client.record.until(Ready, 2)
        assert ready == client.record.of(Ready)[0]
        up = await client.record.until(Up, 2)
        assert up.peer.endswith(f":{other.addresses[0][1]}")
        await scene.pinger.exchange(ready.relay_port)


async def test_bad_lines_do_no_harm(scene: Scene) -> None:
    async with Daemon(scene.server_path, scene.listen), Daemon(scene.client_path, scene.dial) as client:
        await client.record.until(Up)
        for bad in (b"\xff\n", b"{}\n", b'{"send":{}}\n' * 100, b"x" * (lines.LINE_MAX_BYTES + 1), b"half a line"):
            reader, writer = await asyncio.open_unix_connection(scene.client_path)
            assert isinstance(ipc.decode_event(await reader.readline()), lines.Hello)
            with contextlib.suppress(OSError):
                writer.write(bad)
                await writer.drain()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await scene.pinger.exchange(client.record.last(Ready).relay_port)
        client.client.send(GetStats())
        assert (await client.record.until(Stats)).streams == 1


async def test_a_runtime_directory_that_others_may_write_to_is_refused(scene: Scene) -> None:
    directory = scene.directory / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(HostError, match="can be written to by others"):
        await CarrierClient.start(directory / "x.carrier", scene.dial)
    directory.rmdir()
    with pytest.raises(HostError, match="path too long"):
        await CarrierClient.start(scene.directory / ("x" * 120), scene.dial)


def test_the_process_is_small_and_its_build_covers_all_of_its_code() -> None:
    code = "import sys, json, agent.carrier.__main__; print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if getattr(m, '__file__', None)}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded: dict[str, str] = json.loads(done.stdout)
    heavy = {
        "aiohttp",
        "pyroute2",
        "cryptography",
        "prometheus_client",
        "lightkube",
        "httpx2",
        "hashlib",
        "multiprocessing",
    }
    assert not heavy & {name.partition(".")[0] for name in loaded}
    ours = {
        Path(file).name
        for name, file in loaded.items()
        if name.startswith("agent.") and not name.startswith(("agent.carrier", "agent.companion"))
    }
    assert ours <= set(ipc.NEIGHBOURS)


async def test_a_carrier_that_was_never_configured_ends_with_its_last_visitor(runtime: Path) -> None:
    path = runtime / "idle.carrier"
    async with carrier(path) as stop:
        _, writer = await asyncio.open_unix_connection(path)
        await asyncio.sleep(0.01)
        assert not stop.is_set()
        writer.close()
        async with asyncio.timeout(5):
            await stop.wait()


async def test_a_second_carrier_does_not_take_the_place_of_the_first(scene: Scene) -> None:
    with pytest.raises(HostError, match="another carrier has"):
        await run(scene.client_path, asyncio.Event())
    async with Daemon(scene.client_path, scene.dial) as client:
        await client.record.until(Ready)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"port": 65536}, "65536 is no port"),
        ({"wireguard_port": -1}, "-1 is no port"),
        ({"proxies": (Proxy("p", 70_000),)}, "70000 is no port"),
    ],
)
async def test_a_dial_configuration_that_makes_no_sense_is_rejected(
    scene: Scene, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(HostError, match=words):
        await CarrierClient.start(scene.client_path, replace(scene.dial, **change))


async def test_a_listen_configuration_that_makes_no_sense_is_rejected(scene: Scene) -> None:
    with pytest.raises(HostError, match="70000 is no port\n'localhost' is no address to listen on"):
        await CarrierClient.start(scene.server_path, replace(scene.listen, addresses=(("localhost", 70_000),)))
