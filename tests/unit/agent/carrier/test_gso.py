"""Segmentation offload: one system call per run where it works, single packets where it does not."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from agent.carrier import gso
from agent.carrier.capsule import Run
from agent.carrier.gso import RunSender


def run(*payloads: bytes) -> Run:
    return Run(len(payloads[0]), sum(map(len, payloads)), [memoryview(p) for p in payloads])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(1)
        sender.connect(receiver.getsockname())
        yield sender, receiver


class Scripted:
    """A socket that answers sendmsg and send with what the script says: an errno, or 0 for success."""

    def __init__(self, sendmsg: list[int], send: list[int]) -> None:
        self.script = {"sendmsg": sendmsg, "send": send}
        self.calls: list[str] = []

    def _next(self, call: str) -> None:
        self.calls.append(call)
        if number := self.script[call].pop(0):
            raise OSError(number, "scripted")

    def sendmsg(self, *_: Any) -> None:
        self._next("sendmsg")

    def send(self, _: Any) -> None:
        self._next("send")


def test_it_works_here_or_says_that_it_does_not() -> None:
    assert gso.works() in (True, False)
    assert gso.works.cache_info().currsize == 1


@pytest.mark.parametrize("offload", [True, False])
def test_a_run_arrives_as_it_was(pair: tuple[socket.socket, socket.socket], offload: bool) -> None:
    sender, receiver = pair
    packets = [bytes([n]) * 1452 for n in range(44)] + [b"short"]
    runs = RunSender(sender, gso=offload and gso.works())
    runs.send(run(*packets))
    runs.send(run(b""))
    runs.send(run(b"one"))
    assert [receiver.recv(65536) for _ in range(47)] == [*packets, b"", b"one"]
    assert runs.drops == 0


def test_mangled_segments_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mangling(socket.socket):
        def recv(self, *args: int) -> bytes:
            return super().recv(*args)[:-1]

    monkeypatch.setattr("socket.socket", Mangling)
    assert gso.works.__wrapped__() is False


def test_a_kernel_without_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def sendmsg(self, *_: Any) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("socket.socket", Refusing)
    assert gso.works.__wrapped__() is False


THREE = (b"a" * 10, b"b" * 10, b"c" * 10)


def test_without_checksum_offload_it_is_never_tried_again() -> None:
    sock = Scripted([errno.EIO], [0] * 6)
    runs = RunSender(sock, gso=True)  # type: ignore[arg-type]
    runs.send(run(*THREE))
    runs.send(run(*THREE))
    assert sock.calls == ["sendmsg"] + ["send"] * 6 and runs.drops == 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EMSGSIZE, errno.ECONNREFUSED])
def test_a_run_that_is_refused_is_sent_singly(number: int) -> None:
    sock = Scripted([number, 0], [0] * 3)
    runs = RunSender(sock, gso=True)  # type: ignore[arg-type]
    runs.send(run(*THREE))
    runs.send(run(*THREE))
    assert sock.calls == ["sendmsg", "send", "send", "send", "sendmsg"] and runs.drops == 0


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EAGAIN, errno.EPERM])
def test_what_the_kernel_does_not_take_is_dropped_and_counted(number: int) -> None:
    sock = Scripted([number], [number, 0])
    runs = RunSender(sock, gso=True)  # type: ignore[arg-type]
    runs.send(run(*THREE))
    assert runs.drops == 3
    runs.send(run(b"single"))
    runs.send(run(b"single"))
    assert runs.drops == 4 and sock.calls == ["sendmsg", "send", "send"]


def test_a_refused_connection_is_the_fate_of_an_earlier_packet() -> None:
    sock = Scripted([], [errno.ECONNREFUSED, 0, errno.ECONNREFUSED, errno.ECONNREFUSED])
    runs = RunSender(sock, gso=True)  # type: ignore[arg-type]
    runs.send(run(b"retried"))
    assert runs.drops == 0
    runs.send(run(b"lost"))
    assert runs.drops == 1 and sock.script["send"] == []
