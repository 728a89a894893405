"""Carrier processes that are killed, replaced, started twice and robbed of their stderr, on loopback.

Not one datagram is lost for a daemon's sake.
"""

# ruff: noqa: ASYNC220, ASYNC240 -- starting processes and reading /proc is what these tests are about
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.carrier import ipc
from agent.carrier.api import Configure, DialConfig, Down, ListenConfig, Message, Ready, Send, Up
from agent.carrier.client import CarrierClient, Displaced, stop_carrier
from agent.companion import attach, lines
from agent.errors import HostError
from lab.loopback import Daemon, Echo, Pinger, Pki, dial_config, listen_config, resident_kib
from lab.processes import wait_until

#: A daemon as a process of its own, to be killed. Says what it learns, one JSON object per line.
DAEMON = """
import asyncio, json, sys
from pathlib import Path
from agent.carrier import ipc
from agent.carrier.api import Ready
from agent.carrier.client import CarrierClient

async def main():
    command = ipc.decode_command(sys.argv[2].encode())
    client = await CarrierClient.start(Path(sys.argv[1]), command.config)
    async for event in client.events():
        print(type(event).__name__, flush=True)

asyncio.run(main())
"""

#: A carrier whose daemon has died before it could attach, and that is less patient than usual.
NOBODY_COMES = """
import sys
from agent.carrier.__main__ import main
from agent.companion import control

control.NOBODY_CAME_S = 0.2
sys.exit(main())
"""

#: A carrier of another age: says so, and obeys neither Stop nor SIGTERM.
OLD_CARRIER = """
import json, os, signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("ready", flush=True)
kept = []
while True:
    connection, _ = sock.accept()
    connection.send(json.dumps({"hello": {"build": "old", "pid": os.getpid()}}).encode() + b"\\n")
    kept.append(connection)
"""


pytestmark = pytest.mark.netns


@dataclass
class Scene:
    """Where a server's and a client's carrier shall be and what they shall do, and the WireGuards beside them."""

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


@pytest.fixture
async def scene(pki: Pki, runtime: Path) -> AsyncIterator[Scene]:
    with Echo() as echo, Pinger() as pinger:
        listen = listen_config(pki.server(), echo.port)
        dial = dial_config(pki.client(), pinger.port, listen.addresses[0])
        made = Scene(runtime, listen, dial, pinger, echo)
        try:
            yield made
        finally:
            for path in (made.client_path, made.server_path):
                await stop_carrier(path)
            assert list(runtime.iterdir()) == []


@contextlib.contextmanager
def daemon_process(path: Path, config: DialConfig | ListenConfig) -> Iterator[subprocess.Popen[str]]:
    line = lines.encode(Configure(config)).decode()
    argv = [sys.executable, "-c", DAEMON, str(path), line]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: subprocess.Popen[str], wanted: str) -> None:
    """Read the daemon's words until `wanted` comes."""
    assert process.stdout is not None
    async with asyncio.timeout(15):
        while (await asyncio.to_thread(process.stdout.readline)).strip() != wanted:
            assert process.poll() is None


def carriers_at(path: Path) -> set[int]:
    """Processes that were started for this path."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(path).encode() in (process / "cmdline").read_bytes().split(b"\0") and alive(int(process.name)):
                found.add(int(process.name))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


async def test_a_killed_daemon_loses_nothing_and_its_successor_adopts(scene: Scene) -> None:
    async with Daemon(scene.server_path, scene.listen) as server:
        with daemon_process(scene.client_path, scene.dial) as daemon:
            await line_of(daemon, "Up")
            async with Daemon(scene.client_path, scene.dial) as first:
                ready = await first.record.until(Ready)
                number = (await first.record.until(Up)).stream
                server.client.send(Send((await server.record.until(Up)).stream, '{"type":"grant","n":1}'))
                await first.record.until(Message)
            with daemon_process(scene.client_path, scene.dial) as second:
                await line_of(second, "Up")
                traffic = asyncio.ensure_future(scene.pinger.run(lambda: ready.relay_port, 1.0, per_s=100))
                await asyncio.sleep(0.3)
                second.kill()
                second.wait()
                await traffic
        assert await scene.pinger.lost() == 0
        async with Daemon(scene.client_path, scene.dial) as third:
            assert await third.record.until(Ready) == ready
            up = await third.record.until(Up)
            assert (up.stream, up.replay) == (number, ('{"type":"grant","n":1}',))
            assert not third.record.of(Down)


async def test_a_killed_servers_daemon_loses_nothing_either(scene: Scene) -> None:
    with daemon_process(scene.server_path, scene.listen) as daemon:
        await line_of(daemon, "Ready")
        async with Daemon(scene.client_path, scene.dial) as client:
            ready = await client.record.until(Ready)
            client.client.send(Send((await client.record.until(Up)).stream, '{"type":"enroll"}'))
            await line_of(daemon, "Message")
            traffic = asyncio.ensure_future(scene.pinger.run(lambda: ready.relay_port, 1.0, per_s=100))
            await asyncio.sleep(0.3)
            daemon.kill()
            await traffic
            assert await scene.pinger.lost() == 0
            async with Daemon(scene.server_path, scene.listen) as successor:
                up = await successor.record.until(Up)
                assert up.replay == ('{"type":"enroll"}',)


async def test_a_killed_carrier_comes_back_on_the_same_port(scene: Scene) -> None:
    async with Daemon(scene.server_path, scene.listen), Daemon(scene.client_path, scene.dial) as client:
        first, up = await client.record.until(Ready), await client.record.until(Up)
        assert os.getsid(first.pid) == first.pid and Path(f"/proc/{first.pid}/cwd").readlink() == Path("/")
        assert resident_kib(first.pid)["VmRSS"] < 40 * 1024
        os.kill(first.pid, signal.SIGKILL)
        down = await client.record.until(Down)
        assert (down.stream, down.reason) == (up.stream, "carrier")
        second, again = await client.record.until(Ready, 2, timeout_s=10), await client.record.until(Up, 2)
        assert second.relay_port == first.relay_port and second.pid != first.pid
        assert again.stream > up.stream
        await scene.pinger.exchange(second.relay_port)
        assert not Path(f"/proc/{first.pid}").exists(), "no zombie is left"


async def test_daemons_that_start_together_share_one_carrier(scene: Scene) -> None:
    clients = await asyncio.gather(
        *(CarrierClient.start(scene.client_path, scene.dial) for _ in range(3)), return_exceptions=True
    )
    pids = {client._line.pid for client in clients if isinstance(client, CarrierClient) and client._line}
    assert len(pids) == 1
    assert all(isinstance(client, CarrierClient | Displaced) for client in clients), clients
    for client in clients:
        if isinstance(client, CarrierClient):
            await client.detach()
    wait_until(lambda: carriers_at(scene.client_path) == pids, "those that came second to end")


async def test_a_carrier_that_nobody_comes_to_ends(scene: Scene) -> None:
    argv = [sys.executable, "-c", NOBODY_COMES, "--socket", str(scene.client_path)]
    done = await asyncio.to_thread(subprocess.run, argv, timeout=20, check=False)
    assert done.returncode == 0
    assert not scene.client_path.exists()


async def test_a_carrier_of_another_build_is_replaced_even_if_it_does_not_want_to(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "STOP_TIMEOUT_S", 0.2)
    argv = [sys.executable, "-c", OLD_CARRIER, str(scene.client_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as old:
        await line_of(old, "ready")
        async with Daemon(scene.client_path, scene.dial) as client:
            assert (await client.record.until(Ready)).pid != old.pid
            assert old.wait(5) == -signal.SIGKILL


async def test_two_installations_are_told_apart(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc, "build", lambda: "mine")
    with pytest.raises(HostError, match="is Rhizome installed twice"):
        await CarrierClient.start(scene.client_path, scene.dial)


async def test_a_carrier_that_cannot_start_is_an_error_in_words(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "SPAWN_PAUSE_S", 0.01)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HostError, match="ends at once with exit code 1"):
        await CarrierClient.start(scene.client_path, scene.dial)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(HostError, match="cannot start /nonexistent/python: No such file"):
        await CarrierClient.start(scene.client_path, scene.dial)


async def test_a_configuration_that_cannot_work_is_rejected_and_nothing_stays(scene: Scene) -> None:
    taken = replace(scene.listen, addresses=(("192.0.2.1", 443),))
    with pytest.raises(HostError, match=r"cannot listen on 192\.0\.2\.1 port 443: Cannot assign requested address"):
        await CarrierClient.start(scene.server_path, taken)
    async with asyncio.timeout(5):
        while scene.server_path.exists():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stderr", ["closed pipe", "full pipe", "full disk", "closed"])
async def test_a_carrier_whose_words_nobody_takes_goes_on(scene: Scene, stderr: str) -> None:
    read, write = os.pipe()
    if stderr == "closed pipe":
        os.close(read)
    elif stderr == "full pipe":
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, bytes(4096))
        os.set_blocking(write, True)
    elif stderr == "full disk":
        os.close(write)
        write = os.open("/dev/full", os.O_WRONLY)
    argv = [sys.executable, "-m", "agent.carrier", "--socket", str(scene.client_path), "--log-level", "debug"]
    if stderr == "closed":
        argv = ["sh", "-c", 'exec "$@" 2>&-', "sh", *argv]
    with subprocess.Popen(argv, stderr=write) as process:
        os.close(write)
        async with asyncio.timeout(10):
            while not scene.client_path.exists():
                await asyncio.sleep(0.01)
        async with Daemon(scene.server_path, scene.listen), Daemon(scene.client_path, scene.dial) as client:
            assert (await client.record.until(Ready)).pid == process.pid
            await client.record.until(Up)
            await scene.pinger.exchange(client.record.last(Ready).relay_port)
        assert await stop_carrier(scene.client_path)
        assert process.wait(5) == 0
    if stderr != "closed pipe":
        os.close(read)


async def test_stop_leaves_nothing(scene: Scene) -> None:
    assert not await stop_carrier(scene.client_path)
    async with Daemon(scene.client_path, scene.dial) as client:
        pid = (await client.record.until(Ready)).pid
    assert alive(pid), "a daemon that leaves does not take the carrier with it"
    assert await stop_carrier(scene.client_path)
    assert not alive(pid)
    # What a killed one leaves is cleaned too.
    async with Daemon(scene.client_path, scene.dial) as client:
        pid = (await client.record.until(Ready)).pid
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while alive(pid):
            await asyncio.sleep(0.01)
    assert scene.client_path.exists()
    assert not await stop_carrier(scene.client_path)


async def test_sigterm_ends_a_carrier_in_order(scene: Scene) -> None:
    async with Daemon(scene.server_path, scene.listen) as server:
        argv = [sys.executable, "-m", "agent.carrier", "--socket", str(scene.client_path)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
            async with asyncio.timeout(10):
                while not scene.client_path.exists():
                    await asyncio.sleep(0.01)
            made = await CarrierClient.start(scene.client_path, scene.dial)
            await server.record.until(Up)
            await made.detach()
            process.terminate()
            assert process.wait(5) == 0
        assert (await server.record.until(Down)).reason == "eof"
        assert not scene.client_path.exists()


async def test_the_socket_is_for_our_user_only(scene: Scene) -> None:
    nested = scene.directory / "made"
    async with Daemon(nested / "x.carrier", scene.dial):
        assert nested.stat().st_mode & 0o777 == 0o700
        assert (nested / "x.carrier").stat().st_mode & 0o777 == 0o600
    await stop_carrier(nested / "x.carrier")
    nested.rmdir()
