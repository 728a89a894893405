"""Hundreds of hostile targets and malformed heads at a running proxy: nothing outside the ranges is dialled, nothing breaks.

"Dialled" is what reaches the one function that makes connections; here it writes down and refuses.
"""

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.model import IPAddress
from agent.run import cancel_all
from seed_server.egress.api import EgressConfig, UnixListen
from seed_server.egress.dial import Dialler
from seed_server.egress.policy import Way
from seed_server.egress.process import Egress
from seed_server.egress.resolve import Resolver
from seed_server.egress.verdict import Denied, Failure, Stage

SHOOT = ("10.250.0.0/16", "100.96.0.0/11", "fd00:30::/64")
DIRECT = ("10.242.7.0/24", ".direct.test")
#: What somebody would like to reach: this host, metadata services, the seed, the tunnel, everybody.
VICTIMS = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "169.254.170.2", "100.100.100.200", "10.242.0.1", "192.168.128.1",
    "10.0.0.1", "172.16.0.1", "192.168.0.1", "8.8.8.8", "224.0.0.1", "255.255.255.255", "168.63.129.16", "240.0.0.1",
]  # fmt: skip
VICTIMS6 = [
    "::", "::1", "fe80::1", "fec0::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254", "fd8f:6d53:b97a:1::1", "2001:db8::1", "fd00:31::1",
    "fd00:30::5efe:7f00:1", "100::1", "2001::1", "2002:7f00:1::1",
]  # fmt: skip
REBOUND = [*VICTIMS, *VICTIMS6]


def spellings(text: str) -> list[str]:
    """An IPv4 address as different parsers have taken it."""
    a, b, c, d = map(int, text.split("."))
    value = int(ip_address(text))
    embedded = f"{a:02x}{b:02x}:{c:02x}{d:02x}"
    return [
        text,
        f"{text}.",
        str(value),
        hex(value),
        f"{value:#o}".replace("0o", "0"),
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a}.{b}.{c * 256 + d}",
        f"{a}.{b * 65536 + c * 256 + d}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"{a + 256}.{b}.{c}.{d}",
        f"[::ffff:{text}]",
        f"[::ffff:{embedded}]",
        f"[::{text}]",
        f"[::ffff:0:{embedded}]",
        f"[64:ff9b::{embedded}]",
        f"[64:ff9b:1::{embedded}]",
        f"[2002:{embedded}::1]",
        f"[2001:0:{embedded}::1]",
        f"[fd00:30::5efe:{embedded}]",
        f"[{text}]",
        f"{text}%eth0",
        f"user@{text}",
        f"10.250.0.1@{text}",
        f"10.250.0.1:80@{text}",
        f"10.250.0.1#{text}",
        f"10.250.0.1\\{text}",
        f"http://{text}",
        f"//{text}",
        text.replace(".", "%2e"),
        text.replace(".", "。").encode().decode("latin-1"),
    ]


TARGETS = [f"{host}:80" for victim in VICTIMS for host in spellings(victim)]
TARGETS += [f"[{victim}]:80" for victim in VICTIMS6]
TARGETS += [f"[{victim}%{zone}]:80" for victim in VICTIMS6 for zone in ("eth0", "25lo", "1")]
TARGETS += [f"{name}:80" for name in ("localhost", "LOCALHOST", "localhost.", "a.localhost", "ip6-localhost")]
TARGETS += [
    f"10.250.0.1:{port}" for port in ("", "0", "-1", "65536", "080", "0x50", "80/", "80#", "80 ", "8080@1", "٨٠")
]
TARGETS += ["10.250.0.1", "", ":", ":80", "*", "/", "*:80", "10.250.0.1:80:80", "[fd00:30::1]80", "fd00:30::1:80"]
#: Each of these names resolves to the victim of the same number; `mixed` also to something that is allowed.
TARGETS += [f"{kind}-{number}.test:80" for kind in ("rebind", "mixed") for number in range(len(REBOUND))]
TARGETS += [f"rebind-{number}.direct.test:80" for number in range(len(REBOUND))]

GOOD = b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
EVIL = b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 10.250.0.1\r\n\r\n"
HEADS = [
    EVIL,
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(EVIL), EVIL),
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n" + EVIL,
    b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"connect 127.0.0.1:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT  127.0.0.1:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT\t127.0.0.1:80\tHTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT 127.0.0.1:80\r\n\r\n", b"CONNECT 127.0.0.1:80 HTTP/1.1 x\r\nHost: a\r\n\r\n",
    b"CONNECT 10.250.0.1:80 127.0.0.1:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT 127.0.0.1:80 HTTP/0.9\r\n\r\n", b"CONNECT 10.250.0.1:80 HTTP/2.0\r\nHost: a\r\n\r\n",
    b"CONNECT 10.250.0.1:80\0 HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT \xff\xfe:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT 10.250.0.1:80 HTTP/1.1\nHost: a\n\n",
    b"\r\n\r\n" + EVIL, b"\n" + EVIL, b" " + EVIL, b"\0" + EVIL, b"\x16\x03\x01" + EVIL, b"PROXY TCP4 10.250.0.1 10.250.0.1 1 2\r\n" + EVIL,
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\n\r\n", b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost : a\r\n\r\n", b"CONNECT 10.250.0.1:80 HTTP/1.1\r\n Host: a\r\n\r\n", b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost\r\n\r\n",
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"CONNECT " + b"1" * 40_000, b"C" * 40_000,
    b"CONNECT 10.250.0.1:80 HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 8_000 + b"\r\n", b"\r\n" * 20_000, b"", b"C", b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: a\r\n",
]  # fmt: skip


@dataclass
class World:
    path: Path
    dialled: list[tuple[IPAddress, Way]] = field(default_factory=list)

    async def ask(self, head: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, str(self.path))
            answer = b""
            try:
                await loop.sock_sendall(sock, head)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has answered already
            try:
                while more := await loop.sock_recv(sock, 65536):
                    answer += more
            except ConnectionResetError:
                pass
            return answer


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    state = World(tmp_path / "egress.sock")

    async def dial(self: Dialler, address: IPAddress, port: int, way: Way, *_: object) -> socket.socket:
        state.dialled.append((address, way))
        raise Denied(Failure(502, Stage.DIAL, "refused", "dialled"))

    async def addresses(self: Resolver, name: str, until: float) -> list[IPAddress]:
        found = re.fullmatch(r"(rebind|mixed)-([0-9]+)\.test", name)
        if found is None:
            raise Denied(Failure(502, Stage.RESOLVE, "no-such-name", f"no {name}"))
        return [ip_address(text) for text in [REBOUND[int(found[2])], "10.250.0.7"][: 1 + (found[1] == "mixed")]]

    async def in_the_seed(name: str, until: float) -> list[IPAddress]:
        return [ip_address(REBOUND[int(name.partition(".")[0].rpartition("-")[2])])]

    monkeypatch.setattr(Dialler, "dial", dial)
    monkeypatch.setattr(Resolver, "addresses", addresses)
    monkeypatch.setattr("seed_server.egress.proxy._in_the_seed", in_the_seed)
    unix = UnixListen(str(state.path), None, None, 0o600)
    refused = (
        ("192.168.128.0/17", "the tunnel's"),
        ("fd8f:6d53:b97a:1::/96", "the tunnel's"),
        ("10.242.0.0/16", "the seed's"),
    )
    egress = Egress(asyncio.Event())
    egress.configure(EgressConfig((), None, unix, SHOOT, refused, DIRECT))
    yield state
    egress.shut()
    egress.drain_s = 0.0
    await egress.drain()
    await cancel_all()


def test_the_corpus_is_large() -> None:
    assert len(set(TARGETS)) + len(set(HEADS)) >= 600


async def test_nothing_outside_is_dialled_and_nothing_breaks(world: World, caplog: pytest.LogCaptureFixture) -> None:
    heads = [f"CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("latin-1", "replace") for target in TARGETS]
    answers = dict[bytes, bytes]()
    with caplog.at_level(logging.WARNING):
        for batch in _batches(heads + HEADS):
            for head, answer in zip(batch, await asyncio.gather(*map(world.ask, batch)), strict=True):
                answers[head] = answer
    assert not caplog.records, caplog.text
    for head, answer in answers.items():
        if answer or head.endswith(b"\r\n\r\n"):
            assert re.fullmatch(rb"HTTP/1\.1 (400|403|405|502) [ -~]{1,200}\r\n\r\n", answer), (head[:200], answer)
    inside = [ip_network(text) for text in SHOOT]
    for address, way in world.dialled:
        ranges = inside if way is Way.TUNNEL else [ip_network("10.0.0.0/8"), *map(ip_network, _ELSEWHERE)]
        assert any(address.version == network.version and address in network for network in ranges), (address, way)
    # The good ones were dialled, or this would prove nothing.
    assert (ip_address("10.250.0.7"), Way.TUNNEL) in world.dialled
    assert await world.ask(GOOD) == b"HTTP/1.1 502 dialled\r\n\r\n"
    assert world.dialled[-1] == (ip_address("10.250.0.1"), Way.TUNNEL)


#: An exception's name is looked up in the seed, and may lead anywhere there but to what is never dialled and to the shoot.
_ELSEWHERE = (
    "172.16.0.0/12",
    "192.168.0.0/16",
    "8.8.8.8/32",
    "240.0.0.1/32",
    "fd8f:6d53:b97a:1::/96",
    "2001:db8::/32",
    "fd00:31::/64",
    "100::/64",
)


def _batches(items: list[bytes]) -> list[list[bytes]]:
    return [items[start : start + 32] for start in range(0, len(items), 32)]
