"""Which address is connected to, how soon, and what is said when none is."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.carrier import connect as module
from agent.carrier.connect import FirstHop, NoAddress, SocketAddress, connect, lookup
from agent.errors import HostError
from lab.loopback import free_port

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture
def listening() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


@pytest.fixture
def silent() -> Iterator[SocketAddress]:
    """An address whose accept queue is full, so that further SYNs are dropped: a silent path."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    address = server.getsockname()
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(address)
        fillers.append(filler)
    yield SocketAddress(V4, address)
    for sock in (*fillers, server):
        sock.close()


def refused() -> SocketAddress:
    return SocketAddress(V4, ("127.0.0.1", free_port()))


def answers(monkeypatch: pytest.MonkeyPatch, *found: tuple[int, str]) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        return [(family, 1, 6, "", (address, port)) for family, address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, (V6, "::1"), (V6, "::2"), (V6, "::1"), (V4, "192.0.2.1"), (V6, "::3"))
    found = await lookup("seed.test", 443)
    assert [address.sockaddr[0] for address in found] == ["::1", "192.0.2.1", "::2", "::3"]


async def test_a_name_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, (V4, "192.0.2.1"))
    first = await lookup("seed.test", 443)
    answers(monkeypatch, (V4, "192.0.2.2"))
    assert await lookup("seed.test", 443) != first


async def test_an_address_is_its_own_answer() -> None:
    assert [str(address) for address in await lookup("127.0.0.1", 443)] == ["127.0.0.1:443"]
    assert [str(address) for address in await lookup("::1", 443)] == ["[::1]:443"]
    assert str(SocketAddress(V6, ("::ffff:192.0.2.1", 5, 0, 0))) == "192.0.2.1:5"


@pytest.mark.parametrize("name", ["no-such-name.invalid", "a" * 70 + ".test", "nul\0", ".."])
async def test_a_name_without_addresses_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(HostError, match="cannot look up"):
        await lookup(name, 443)


async def test_hanging_resolvers_are_given_up_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        release.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT_S", 0.05)
    try:
        for _ in range(module.LOOKUPS_MAX):
            with pytest.raises(HostError, match="no answer from the resolver"):
                await lookup("seed.test", 443)
        with pytest.raises(HostError, match="4 earlier lookups still wait"):
            await lookup("seed.test", 443)
    finally:
        release.set()
    async with asyncio.timeout(2):
        while threading.active_count() > 1 and any("lookup" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
    monkeypatch.undo()
    assert await lookup("127.0.0.1", 443)


async def test_replicas_take_turns_after_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    async def connect_to(found: list[SocketAddress]) -> None:
        tried.append([address.sockaddr[0][-1] for address in found])
        raise HostError("no")

    monkeypatch.setattr(module, "connect", connect_to)
    answers(monkeypatch, *((V4, f"192.0.2.{n}") for n in range(3)))
    hop = FirstHop()
    for failed in (0, 1, 0, None):
        with pytest.raises(HostError):
            await hop.connect("seed.test", 1)
        if failed is not None:
            hop.failed(SocketAddress(V4, (f"192.0.2.{failed}", 1)))
    hop.succeeded()
    with pytest.raises(HostError):
        await hop.connect("seed.test", 1)
    assert tried == [list("012"), list("120"), list("201"), list("210"), list("012")]


class Resolver:
    """Answers as it is told, each lookup when `speak` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: tuple[str, int] | None = None
        self._may_speak = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr(module, "LOOKUP_PATIENCE_S", 0.05)

    def _getaddrinfo(self, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        self._may_speak.wait(10)
        if self.answer is None:
            raise socket.gaierror(socket.EAI_AGAIN, "again")
        return [(V4, 1, 6, "", self.answer)]

    def speak(self, answer: tuple[str, int] | None) -> None:
        self.answer = answer
        self._may_speak.set()

    def be_silent(self) -> None:
        self._may_speak = threading.Event()


async def test_while_dns_is_silent_the_last_answer_is_good_enough(
    listening: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch)
    hop = FirstHop()
    resolver.speak(listening)
    sock, _ = await hop.connect("seed.test", 1)
    sock.close()
    resolver.be_silent()
    try:
        async with asyncio.timeout(2):
            sock, address = await hop.connect("seed.test", 1)
        assert address.sockaddr == listening and sock.getpeername() == listening
        sock.close()
        monkeypatch.setattr(module, "LOOKUP_TIMEOUT_S", 0.1)
        with pytest.raises(NoAddress):  # another name's answer is not
            await hop.connect("other.test", 1)
    finally:
        resolver.speak(None)


async def test_an_answer_that_comes_late_and_is_another_one_counts(
    listening: tuple[str, int], silent: SocketAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch)
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.1)
    hop = FirstHop()
    resolver.speak(silent.sockaddr)
    with pytest.raises(HostError, match="no answer within"):
        await hop.connect("seed.test", 1)
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 5.0)
    resolver.be_silent()
    asyncio.get_running_loop().call_later(0.2, resolver.speak, listening)
    async with asyncio.timeout(2):
        sock, address = await hop.connect("seed.test", 1)
    assert address.sockaddr == listening
    sock.close()


async def test_the_first_address_that_answers_wins(listening: tuple[str, int]) -> None:
    sock, address = await connect([refused(), SocketAddress(V4, listening), refused()])
    with sock:
        assert sock.getpeername() == listening
        assert address.sockaddr == listening
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_silent_address_holds_up_the_next_for_a_quarter_second(
    silent: SocketAddress, listening: tuple[str, int]
) -> None:
    started = time.monotonic()
    sock, _ = await connect([silent, SocketAddress(V4, listening)])
    sock.close()
    assert 0.2 < time.monotonic() - started < 4.0


async def test_every_failure_is_named(silent: SocketAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.3)
    closed = refused()
    with pytest.raises(HostError) as caught:
        await connect([closed, silent])
    assert str(caught.value) == f"{closed}: Connection refused; {silent}: no answer within 0.3 s"


async def test_without_an_address_there_is_an_error() -> None:
    with pytest.raises(HostError, match="no address"):
        await connect([])


async def test_a_cancelled_attempt_leaves_no_socket(silent: SocketAddress) -> None:
    task = asyncio.ensure_future(connect([silent]))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)  # an unclosed socket would be a ResourceWarning, and that an error
