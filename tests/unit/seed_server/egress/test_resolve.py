"""The shoot's DNS, as it should be and as a hostile shoot makes it."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from agent.run import cancel_all
from seed_server.egress import dial, resolve
from seed_server.egress.dial import Dialler
from seed_server.egress.policy import Way
from seed_server.egress.resolve import Resolver
from seed_server.egress.verdict import Denied

Answer = Callable[[dns.message.Message], bytes | None]
SERVER = ip_address("127.0.0.1")


@dataclass
class Dns:
    """A name server on the loopback; `answer` makes its answers, None for silence. `asked` counts questions."""

    answer: Answer = lambda question: None
    over_tcp: Answer = lambda question: None
    asked: list[str] = field(default_factory=list)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dns]:
    state = Dns()

    class Udp(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            question = dns.message.from_wire(data)
            state.asked.append(str(question.question[0].name))
            if (wire := state.answer(question)) is not None:
                self.transport.sendto(wire, addr)

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = struct.unpack("!H", await reader.readexactly(2))[0]
        wire = state.over_tcp(dns.message.from_wire(await reader.readexactly(size))) or b""
        writer.write(struct.pack("!H", len(wire)) + wire)
        writer.close()

    loop = asyncio.get_running_loop()
    listener = await asyncio.start_server(tcp, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(Udp, ("127.0.0.1", port))
    monkeypatch.setattr(resolve, "PORT", port)
    monkeypatch.setattr(resolve, "RETRY_S", 0.1)
    yield state
    transport.close()
    listener.close()
    await listener.wait_closed()
    await cancel_all()


def reply(question: dns.message.Message, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> bytes:
    """Records such as `a.test. A 10.0.0.1`; those of another type than was asked are left out."""
    answer = dns.message.make_response(question)
    answer.set_rcode(rcode)
    kind = question.question[0].rdtype.name
    for record in records:
        name, rtype, value = record.split()
        if rtype in (kind, "CNAME"):
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", rtype, value))
    return answer.to_wire()


async def ask(name: str, seconds: float = 0.5, servers: int = 1, fault: str = "") -> list[str]:
    resolver = Resolver([SERVER] * servers, (), Dialler(lambda address: fault))
    found = await resolver.addresses(name, asyncio.get_running_loop().time() + seconds)
    return [str(address) for address in found]


async def failure(name: str, seconds: float = 0.5, fault: str = "") -> tuple[int, str, str]:
    with pytest.raises(Denied) as caught:
        await ask(name, seconds, fault=fault)
    found = caught.value.failure
    return found.status, found.result, found.words


async def test_both_families_in_turn_and_aliases_followed(server: Dns) -> None:
    server.answer = lambda q: reply(q, "a.test. CNAME b.test.", "b.test. A 10.0.0.1", "b.test. AAAA fd00::1")
    assert await ask("a.test") == ["10.0.0.1", "fd00::1"]


async def test_what_is_not_there(server: Dns) -> None:
    server.answer = lambda q: reply(q, rcode=dns.rcode.NXDOMAIN)
    assert await failure("a.test") == (502, "no-such-name", "the shoot's DNS knows no a.test")
    server.answer = lambda q: reply(q)
    assert await failure("a.test") == (502, "no-such-name", "the shoot's DNS has no address for a.test")
    server.answer = lambda q: reply(q, rcode=dns.rcode.SERVFAIL)
    assert (await failure("a.test", 0.2))[1:] == (
        "dns-error",
        "the shoot's DNS 127.0.0.1 answered SERVFAIL for a.test",
    )


async def test_silence_is_asked_again_and_ends_in_time(server: Dns) -> None:
    assert (await failure("a.test", 0.35))[:2] == (504, "dns-timeout")
    assert len(server.asked) >= 6  # both families, more than once


@pytest.mark.parametrize("is_silent", [True, False])
async def test_one_family_is_enough(server: Dns, is_silent: bool) -> None:
    """What many servers do for AAAA: nothing at all, or REFUSED."""

    def answer(question: dns.message.Message) -> bytes | None:
        if question.question[0].rdtype.name == "A":
            return reply(question, "a.test. A 10.0.0.1")
        return None if is_silent else reply(question, rcode=dns.rcode.REFUSED)

    server.answer = answer
    began = time.monotonic()
    assert await ask("a.test", 5.0) == ["10.0.0.1"]
    assert time.monotonic() - began < 4, "sooner than its 5 s"


async def test_nobody_is_asked_through_a_tunnel_that_is_down(server: Dns) -> None:
    assert await failure("a.test", fault="no client for 3.0s") == (
        503,
        "tunnel-down",
        "tunnel down: no client for 3.0s",
    )
    assert not server.asked


async def test_without_a_server_names_are_refused() -> None:
    with pytest.raises(Denied, match="no DNS of the shoot is configured"):
        await ask("a.test", servers=0)


async def test_lies_and_noise_are_not_believed(server: Dns) -> None:
    """Another id, another question, garbage, loops of aliases, hundreds of addresses."""

    async def told(*wires: Callable[[dns.message.Message], bytes]) -> tuple[int, str, str]:
        turn = iter(wires * 40)
        server.answer = lambda q: next(turn)(q)
        return await failure("a.test", 0.12)

    def other_id(question: dns.message.Message) -> bytes:
        wire = reply(question, "a.test. A 10.0.0.1")
        return bytes([wire[0] ^ 1]) + wire[1:]

    def other_name(question: dns.message.Message) -> bytes:
        forged = dns.message.make_query("b.test.", "A", id=question.id)
        return reply(forged, "b.test. A 10.0.0.1")

    assert (await told(other_id))[1] == "dns-timeout"
    assert (await told(other_name))[1] == "dns-timeout"
    assert (await told(lambda q: b"\0" * 5, lambda q: b"\xff" * 600, lambda q: q.to_wire()))[1] == "dns-timeout"
    loop = ("a.test. CNAME b.test.", "b.test. CNAME a.test.")
    assert (await told(lambda q: reply(q, *loop)))[1] in ("dns-error", "no-such-name")
    server.answer = lambda q: reply(q, *(f"a.test. A 10.0.0.{n}" for n in range(1, 60)))
    assert len(await ask("a.test")) == resolve.ADDRESSES_MAX


async def test_a_long_answer_comes_over_tcp(server: Dns) -> None:
    def cut(question: dns.message.Message) -> bytes:
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.TC
        return answer.to_wire()

    server.answer = cut
    server.over_tcp = lambda q: reply(q, "a.test. A 10.0.0.9")
    assert await ask("a.test") == ["10.0.0.9"]
    server.over_tcp = lambda q: b"garbage"
    assert (await failure("a.test", 0.2))[:2] == (502, "dns-unreachable")


async def test_a_closed_port_is_an_error_and_no_wait(server: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(resolve, "PORT", unused.getsockname()[1])
    assert (await failure("a.test", 0.2))[1] == "dns-unreachable"


async def test_each_address_is_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "STAGGER_S", 0.05)
    dialler = Dialler(lambda address: "gone" if str(address) == "127.0.0.3" else "")
    with socket.create_server(("127.0.0.2", 0)) as good:
        port = good.getsockname()[1]
        until = asyncio.get_running_loop().time() + 2
        ways = [(ip_address(f"127.0.0.{last}"), Way.TUNNEL) for last in (1, 3, 2)]
        sock = await dialler.first(ways, port, (), until)
        assert sock.getpeername() == ("127.0.0.2", port)
        sock.close()
        with pytest.raises(Denied, match=r"127\.0\.0\.1:\d+ refused the connection"):
            await dialler.first(ways[:2], port, (), until)
