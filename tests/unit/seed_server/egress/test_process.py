"""The egress process's control socket: configured, taken over, lied to, and let go of; run as a coroutine here."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.companion.client import Displaced
from agent.companion.lines import Drain, encode
from agent.errors import HostError
from agent.run import cancel_all, spawn
from seed_server.egress import lines
from seed_server.egress.api import Carries, EgressConfig, GetStats, Known, Leaves, Ready, Stats, UnixListen
from seed_server.egress.client import EgressClient, retire_egress, stop_egress
from seed_server.egress.process import run


@pytest.fixture
def config(tmp_path: Path) -> EgressConfig:
    unix = UnixListen(str(tmp_path / "proxy.sock"), None, None, 0o600)
    return EgressConfig((), None, unix, shoot=("10.0.0.0/8",))


@asynccontextmanager
async def process(path: Path) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    task = spawn(run(path, stop), name="egress")
    while not os.path.exists(path):  # noqa: ASYNC240, PTH110
        await asyncio.sleep(0.002)
    try:
        yield stop
    finally:
        stop.set()
        await task
        await cancel_all()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory / "x.egress"


async def ask(path: Path, host: str = "10.0.0.1") -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"CONNECT {host}:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_daemon_configures_it_and_reads_its_numbers(path: Path, config: EgressConfig, tmp_path: Path) -> None:
    async with process(path):
        client = await EgressClient(path, config).attach()
        events = client.events()
        assert isinstance(await anext(events), Ready)
        assert (tmp_path / "proxy.sock").stat().st_mode & 0o777 == 0o600
        client.send(Carries("node-1", ("10.0.0.0/8",), "node-1 has not answered", 9.9))
        client.send(Known())
        client.send(GetStats())
        assert isinstance(await anext(events), Stats)
        assert (await ask(tmp_path / "proxy.sock")).startswith(b"HTTP/1.1 503 tunnel down: node-1 has not answered for")
        client.send(Leaves("node-1"))
        client.send(Known("no client", 1.0))
        client.send(GetStats())
        stats = await anext(events)
        assert isinstance(stats, Stats)
        assert stats.dials == (("tunnel", "tunnel-down", 1),)
        assert stats.last_failure.startswith("10.0.0.1:80: tunnel down")
        await client.detach()
    assert not (tmp_path / "proxy.sock").exists()


async def test_the_next_daemon_takes_over_and_the_first_one_is_told(path: Path, config: EgressConfig) -> None:
    async with process(path):
        first = await EgressClient(path, config).attach()
        assert isinstance(await anext(first.events()), Ready)
        second = await EgressClient(path, replace(config, max_heads=3)).attach()
        with pytest.raises(Displaced, match="another daemon has taken over this egress"):
            await anext(first.events())
        await first.detach()
        await second.detach()


async def test_a_configuration_that_cannot_work_changes_nothing(
    path: Path, config: EgressConfig, tmp_path: Path
) -> None:
    async with process(path):
        client = await EgressClient(path, config).attach()
        bad: list[tuple[EgressConfig, str]] = [
            (
                replace(config, unix=UnixListen("/nonexistent/x.sock", None, None, 0o600)),
                "cannot listen on /nonexistent",
            ),
            (replace(config, addresses=(("192.0.2.1", 1),)), "TCP without TLS is not served"),
            (replace(config, shoot=("nonsense",)), "egress: "),
        ]
        for wrong, words in bad:
            with pytest.raises(HostError, match=words):
                await EgressClient(path, wrong).attach()
        assert (await ask(tmp_path / "proxy.sock", "9.9.9.9")).startswith(b"HTTP/1.1 403")
        await client.detach()


async def test_nonsense_on_the_line_is_no_end(path: Path, config: EgressConfig) -> None:
    async with process(path):
        client = await EgressClient(path, config).attach()
        reader, writer = await asyncio.open_unix_connection(path)
        await reader.readline()
        for line in (b"{}\n", b"\xff\n", encode(Known("a stranger says so", 1.0)), encode(Carries("a", ("nonsense",)))):
            writer.write(line)
        writer.write(encode(GetStats()))
        assert isinstance(lines.decode_event(await reader.readline()), Stats)
        writer.close()
        await client.detach()


async def test_it_retires_when_it_is_not_wanted_any_more(path: Path, config: EgressConfig, tmp_path: Path) -> None:
    async with process(path) as stop:
        client = await EgressClient(path, config).attach()
        await client.detach()
        await retire_egress(path)
        assert stop.is_set()
    assert not [entry.name for where in (path.parent, tmp_path) for entry in os.scandir(where) if entry.is_file()]


async def test_one_that_was_never_configured_ends_with_its_last_visitor(path: Path) -> None:
    async with process(path) as stop:
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        async with asyncio.timeout(2):
            await stop.wait()


async def test_a_real_one_is_started_adopted_and_stopped(path: Path, config: EgressConfig) -> None:
    client = await EgressClient(path, config).attach()
    first = await anext(client.events())
    assert isinstance(first, Ready)
    await client.detach()
    again = await EgressClient(path, config).attach()
    second = await anext(again.events())
    assert isinstance(second, Ready)
    assert second.pid == first.pid
    await again.detach()
    assert await stop_egress(path)
    assert not await stop_egress(path)


def test_the_process_is_small_and_its_build_covers_all_of_its_code() -> None:
    code = "import sys, json, seed_server.egress.__main__; print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if getattr(m, '__file__', None)}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded: dict[str, Any] = json.loads(done.stdout)
    heavy = {"aiohttp", "pyroute2", "cryptography", "prometheus_client", "lightkube", "httpx2", "ipam", "dns"}
    assert not heavy & {name.partition(".")[0] for name in loaded}
    agent = Path(lines.__file__).parents[2] / "agent"
    covered = {str(path) for name in lines.NEIGHBOURS for path in agent.glob(name)}
    ours = {file for name, file in loaded.items() if name.startswith("agent.")}
    assert ours <= covered


def test_drain_is_understood() -> None:
    assert lines.decode_command(encode(Drain(0.5))) == Drain(0.5)
