"""Real wireguard-go processes: they outlive whoever made them, are adopted, die, and are made anew."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from agent.errors import HostError, Unsupported
from agent.host import CreateDevice, RemoveAllowedIPs, SetDevice, SetPeer
from agent.keys import generate_private_key, public_key
from agent.model import Peer
from agent.wireguard import userspace
from agent.wireguard.choose import find_program
from agent.wireguard.userspace import UserspaceWireGuard
from lab import impair

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("netns")]

PEER = public_key(generate_private_key())


@pytest.fixture
def program() -> Path:
    found = find_program()
    assert found is not None, "run scripts/install-wireguard-go"
    return found


@pytest.fixture
def ifname() -> Iterator[str]:
    name = f"rzg{os.getpid():x}"
    yield name
    subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
    (userspace.SOCKETS / f"{name}.sock").unlink(missing_ok=True)


def pid_of(ifname: str) -> int:
    """The process of a device. Raises StopIteration when there is none (a zombie has no command line)."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and words[0].endswith(b"wireguard-go") and words[1] == ifname.encode():
            return int(path.parent.name)
    raise StopIteration


def udp_inode(port: int) -> str:
    lines = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
    return next(line.split()[9] for line in lines if line.split()[1].endswith(f":{port:04X}"))


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def standard_streams(pid: int) -> list[str]:
    return [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1, 2)]


def set_up(ifname: str) -> None:
    subprocess.run(["ip", "link", "set", ifname, "up"], check=True)


async def test_a_killed_process_is_noticed_and_its_device_is_made_anew(program: Path, ifname: str) -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()
    wg = UserspaceWireGuard(program, on_exit=ended.put_nowait)
    create = CreateDevice(ifname, 1420, "rhizome test 1")
    await wg.create(create)
    await wg.apply([SetPeer(ifname, PEER)])
    os.kill(pid_of(ifname), signal.SIGKILL)
    assert await asyncio.wait_for(ended.get(), 5) == ifname
    assert (userspace.SOCKETS / f"{ifname}.sock").exists(), "a killed process leaves its socket behind"
    assert await wg.read(ifname) is None
    with pytest.raises(HostError) as caught:
        await wg.apply([SetPeer(ifname, PEER)])
    assert caught.value.errno == errno.ENODEV
    await wg.delete(ifname)

    await wg.create(create)
    state = await wg.read(ifname)
    assert state is not None
    assert state.peers == frozenset()
    await wg.delete(ifname)
    await asyncio.sleep(0.05)
    assert ended.empty(), "deleting is not dying"


@pytest.mark.parametrize("first", ["delete", "create"])
async def test_the_device_of_a_process_that_is_ending_is_waited_for(program: Path, ifname: str, first: str) -> None:
    """A kernel closes a killed process's connections a moment before its device: here half a second before."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, impair.TUNSETIFF, struct.pack("16sH22x", ifname.encode(), impair.IFF_TUN_NO_PI))
    with socket.socket(socket.AF_UNIX) as listener:
        userspace.SOCKETS.mkdir(parents=True, exist_ok=True)
        listener.bind(str(userspace.SOCKETS / f"{ifname}.sock"))  # stays behind when nobody listens any more
    asyncio.get_running_loop().call_later(0.5, os.close, tun)
    wg = UserspaceWireGuard(program)
    if first == "delete":
        await wg.delete(ifname)
    await wg.create(CreateDevice(ifname, 1420, "rhizome test 1"))
    assert await wg.read(ifname) is not None
    await wg.delete(ifname)


async def test_an_adopted_process_is_watched_too(program: Path, ifname: str) -> None:
    await UserspaceWireGuard(program).create(CreateDevice(ifname, 1420, "rhizome test 1"))
    ended: asyncio.Queue[str] = asyncio.Queue()
    adopter = UserspaceWireGuard(program, on_exit=ended.put_nowait)
    assert await adopter.read(ifname) is not None
    await adopter.read(ifname)
    await asyncio.sleep(0.05)  # the watch opens its connection
    os.kill(pid_of(ifname), signal.SIGTERM)
    assert await asyncio.wait_for(ended.get(), 5) == ifname
    assert await adopter.read(ifname) is None
    await asyncio.sleep(0.05)
    assert ended.empty()


async def test_it_outlives_the_daemon_and_its_signals_and_is_adopted(program: Path, ifname: str) -> None:
    daemon = textwrap.dedent(f"""
        import asyncio, sys, time
        from pathlib import Path
        from agent.host import CreateDevice, SetDevice
        from agent.keys import generate_private_key
        from agent.wireguard.userspace import UserspaceWireGuard

        async def main():
            wg = UserspaceWireGuard(Path({str(program)!r}))
            await wg.create(CreateDevice({ifname!r}, 1400, "rhizome daemon 1"))
            await wg.apply([SetDevice({ifname!r}, generate_private_key(), 51790)])

        asyncio.run(main())
        print("ready", flush=True)
        time.sleep(60)
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", daemon, stdout=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    before = pid_of(ifname)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal sends to everything in the foreground
    os.killpg(process.pid, signal.SIGKILL)
    await process.communicate()  # returns: nobody else holds the daemon's output open

    wg = UserspaceWireGuard(program)
    state = await wg.read(ifname)
    assert state is not None
    assert state.private_key is not None
    assert state.listen_port == 51790
    assert pid_of(ifname) == before
    assert standard_streams(before) == [os.devnull] * 3
    with pytest.raises(HostError) as caught:
        await wg.create(CreateDevice(ifname, 1420, "rhizome second"))
    assert caught.value.errno == errno.EEXIST
    await wg.delete(ifname)


async def test_its_environment_has_a_memory_limit_and_nothing_of_ours(
    program: Path, ifname: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example")
    monkeypatch.delenv("GOMEMLIMIT", raising=False)
    wg = UserspaceWireGuard(program, memory_limit_mib=77)
    await wg.create(CreateDevice(ifname, 1420, "rhizome test 1"))
    environment = environment_of(pid_of(ifname))
    assert "GOMEMLIMIT=77MiB" in environment
    assert "GOGC=off" in environment
    assert "secret" not in "".join(environment)
    await wg.delete(ifname)


async def test_an_unchanged_listen_port_keeps_its_socket(program: Path, ifname: str) -> None:
    wg = UserspaceWireGuard(program)
    await wg.create(CreateDevice(ifname, 1420, "rhizome test 1"))
    await wg.apply([SetDevice(ifname, generate_private_key(), 51791)])
    set_up(ifname)
    await asyncio.sleep(0.1)
    before = udp_inode(51791)
    await wg.apply([SetDevice(ifname, generate_private_key(), 51791, 0x52)])
    assert udp_inode(51791) == before
    state = await wg.read(ifname)
    assert state is not None
    assert (state.listen_port, state.fwmark) == (51791, 0x52)
    await wg.delete(ifname)


async def test_the_feature_test_changes_nothing_and_is_done_once_per_process(
    program: Path, ifname: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wg = UserspaceWireGuard(program)
    await wg.create(CreateDevice(ifname, 1420, "rhizome test 1"))
    networks = frozenset({IPv4Network("10.1.0.0/16"), IPv4Network("192.0.2.0/32")})
    await wg.apply([SetPeer(ifname, PEER, networks)])
    asked: list[bytes] = []
    ask = wg._ask

    async def counting(name: str, request: bytes) -> bytes:
        asked.append(request)
        return await ask(name, request)

    monkeypatch.setattr(wg, "_ask", counting)
    for network in (IPv4Network("10.1.0.0/16"), IPv4Network("10.9.0.0/16")):
        await wg.apply([RemoveAllowedIPs(ifname, PEER, frozenset({network}))])
    assert len(asked) == 3
    state = await wg.read(ifname)
    assert state is not None
    assert state.peers == {Peer(PEER, frozenset({IPv4Network("192.0.2.0/32")}))}
    await wg.delete(ifname)


async def test_a_program_that_is_none_says_what_to_do(tmp_path: Path, ifname: str) -> None:
    wg = UserspaceWireGuard(tmp_path / "wireguard-go")
    with pytest.raises(Unsupported, match="install-wireguard-go"):
        await wg.create(CreateDevice(ifname, 1420, "rhizome test 1"))


async def test_the_words_of_a_program_that_fails_are_passed_on(tmp_path: Path, ifname: str) -> None:
    program = tmp_path / "wireguard-go"
    program.write_text("#!/bin/sh\necho '│ advertisement │' >&2\necho 'ERROR: (x) no luck today'\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(HostError, match="no luck today"):
        await UserspaceWireGuard(program).create(CreateDevice(ifname, 1420, "rhizome test 1"))


async def test_a_program_that_hangs_is_ended(tmp_path: Path, ifname: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userspace, "_START_S", 0.2)
    program = tmp_path / "wireguard-go"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(HostError) as caught:
        await UserspaceWireGuard(program).create(CreateDevice(ifname, 1420, "rhizome test 1"))
    assert caught.value.errno == errno.ETIMEDOUT
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_name_that_another_namespace_uses_is_refused_in_words(program: Path, ifname: str) -> None:
    """The directory of sockets is not part of a network namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        userspace.SOCKETS.mkdir(exist_ok=True)
        other.bind(str(userspace.SOCKETS / f"{ifname}.sock"))
        other.listen()
        with pytest.raises(HostError, match="in use"):
            await UserspaceWireGuard(program).create(CreateDevice(ifname, 1420, "rhizome test 1"))
    assert ifname not in {name for _, name in socket.if_nameindex()}


async def test_a_process_that_does_not_answer_is_an_error_not_a_hang(
    program: Path, ifname: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wg = UserspaceWireGuard(program)
    await wg.create(CreateDevice(ifname, 1420, "rhizome test 1"))
    monkeypatch.setattr(userspace, "_ANSWER_S", 0.2)
    pid = pid_of(ifname)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(HostError) as caught:
            await wg.read(ifname)
        assert caught.value.errno == errno.ETIMEDOUT
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await wg.read(ifname) is not None
    await wg.delete(ifname)
