"""What a daemon is told when it attaches to a busy carrier, in which order, and what happens when it does not read."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.carrier import ipc
from agent.carrier.api import Configure, DialConfig, Down, Message, Ready, Rejected, Stats, TlsFiles, Turned, Up
from agent.carrier.control import UNREAD_MAX_BYTES, Audience, ControlSocket
from agent.companion.lines import Displaced, Hello, encode
from agent.errors import HostError
from agent.run import cancel_all, spawn

READY = Ready(4711, 1)
CONFIG = DialConfig("h", 1, "n", TlsFiles("a", "b", "c"), 1)


def up(number: int, *replay: str) -> Up:
    return Up(number, "spiffe://a/shoot-client/n", "192.0.2.1:1", "accepted", 1, replay)


class Streams:
    """The part of agent.carrier.streams.Streams that an audience looks at."""

    def __init__(self, *numbers: int) -> None:
        self.live = {number: up(number, "enroll") for number in numbers}

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self.live))

    def up(self, number: int) -> Up | None:
        return self.live.get(number)


class Transport:
    def __init__(self, writer: "Writer") -> None:
        self._writer = writer
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self._writer.unread_bytes

    def abort(self) -> None:
        self.aborted = True


class Writer:
    """An asyncio.StreamWriter whose reader reads when the test lets it."""

    def __init__(self) -> None:
        self.told: list[ipc.FromCarrier] = []
        self.unread_bytes = 0
        self.closed = False
        self.read = asyncio.Event()
        self.read.set()
        self.transport = Transport(self)

    def write(self, line: bytes) -> None:
        self.unread_bytes += len(line)
        self.told.append(ipc.decode_event(line))

    async def drain(self) -> None:
        await self.read.wait()
        self.unread_bytes = 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def writer() -> AsyncIterator[Writer]:
    yield Writer()
    await cancel_all()


def attach(audience: Audience, writer: Writer, streams: Streams) -> None:
    audience.attach(writer)  # type: ignore[arg-type]
    audience.announce(READY, streams)  # type: ignore[arg-type]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_without_a_daemon_nothing_is_kept() -> None:
    audience = Audience()
    audience.publish(up(1))
    audience.publish(Message(1, "x"))
    audience.publish(Down(1, "eof", ""))


async def test_a_daemon_first_hears_what_is(writer: Writer) -> None:
    audience = Audience()
    attach(audience, writer, Streams(1, 2))
    await turns()
    assert writer.told == [READY, up(1, "enroll"), up(2, "enroll")]
    audience.publish(Message(2, "live"))
    audience.publish(Down(1, "eof", ""))
    audience.publish(up(3))
    assert writer.told[3:] == [Message(2, "live"), Down(1, "eof", ""), up(3)]


async def test_what_happens_while_it_is_told_comes_once_and_in_order(writer: Writer) -> None:
    audience, streams = Audience(), Streams(1, 2, 3)
    writer.read.clear()
    attach(audience, writer, streams)
    await turns()
    assert writer.told == [READY, up(1, "enroll")]
    audience.publish(Message(1, "about one that was told"))
    audience.publish(Message(2, "about one that was not"))
    del streams.live[3]
    audience.publish(Down(3, "eof", ""))
    streams.live[4] = up(4)
    audience.publish(up(4))
    writer.read.set()
    await turns()
    assert writer.told[2:] == [Message(1, "about one that was told"), up(2, "enroll"), up(4)]


async def test_a_second_configure_announces_nothing_twice(writer: Writer) -> None:
    audience, streams = Audience(), Streams(1)
    attach(audience, writer, streams)
    await turns()
    attach(audience, writer, streams)
    await turns()
    assert writer.told == [READY, up(1, "enroll"), READY]


async def test_the_newest_is_told_and_the_other_knows_why_not(writer: Writer) -> None:
    audience, streams, newest = Audience(), Streams(1), Writer()
    attach(audience, writer, streams)
    await turns()
    attach(audience, newest, streams)
    await turns()
    assert writer.told[-1] == Displaced() and writer.closed
    assert newest.told == [READY, up(1, "enroll")]
    audience.detach(writer)  # type: ignore[arg-type]
    audience.publish(Message(1, "x"))
    assert newest.told[-1] == Message(1, "x"), "the end of the displaced one changes nothing"


async def test_who_does_not_read_is_hung_up_on(writer: Writer) -> None:
    audience = Audience()
    attach(audience, writer, Streams(1))
    await turns()
    text = "x" * 60_000
    for _ in range(2 * UNREAD_MAX_BYTES // len(text)):
        audience.publish(Message(1, text))
    assert writer.transport.aborted
    assert writer.unread_bytes < UNREAD_MAX_BYTES + 2 * len(text)


class Carrier:
    """Answers as the test wants."""

    def __init__(self) -> None:
        self.streams = Streams()

    def configure(self, command: Configure) -> Ready:
        raise HostError("no")

    def execute(self, command: object) -> tuple[Stats | Turned, ...]:
        return (Turned((), "asked"),)

    def on_nobody_left(self) -> None:
        return


async def test_a_rejection_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.carrier"
    control = ControlSocket(path, Carrier(), Audience())  # type: ignore[arg-type]
    serving = spawn(control.serve(), name="test.serve")
    reader, writer = await asyncio.open_unix_connection(path)
    assert isinstance(ipc.decode_event(await reader.readline()), Hello)
    writer.write(b'{"getstats":{}}\n' + encode(Configure(CONFIG)))
    heard = [ipc.decode_event(await reader.readline()) for _ in range(2)]
    assert heard == [Turned((), "asked"), Rejected("no")]
    writer.close()
    await writer.wait_closed()
    serving.cancel()
    await cancel_all()
    control.close()
    assert not path.with_name("x.carrier.lock").exists()


async def test_the_lock_outlives_a_removed_file(tmp_path: Path) -> None:
    path = tmp_path / "x.carrier"
    first = ControlSocket(path, Carrier(), Audience())  # type: ignore[arg-type]
    with pytest.raises(HostError, match=r"another carrier has .*x\.carrier\.lock"):
        ControlSocket(path, Carrier(), Audience())  # type: ignore[arg-type]
    waiting = os.open(tmp_path / "x.carrier.lock", os.O_RDWR)
    first.close()
    fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who had opened the removed file holds nothing by it
    second = ControlSocket(path, Carrier(), Audience())  # type: ignore[arg-type]
    second.close()
    os.close(waiting)
