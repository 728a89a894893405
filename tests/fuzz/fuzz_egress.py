"""Any bytes at the egress proxy -> one verdict, whatever the chunking, and only the shoot's ranges are ever allowed.

python -m tests.fuzz.fuzz_egress --seconds 60 [--seed N]: heads of CONNECT, targets, answers of the shoot's DNS, and the
lines of the control socket. Prints how many inputs it tried; exits 1 with the input on a finding.
"""

from __future__ import annotations

import random
import re
import sys
from ipaddress import ip_address

import dns.message
import dns.rrset

from agent.carrier.api import TlsFiles
from agent.carrier.upgrade import Request, RequestReader
from agent.companion.lines import Drain, encode
from agent.errors import BadMessage
from agent.model import networks
from seed_server.egress import api, lines, proxy, resolve
from seed_server.egress.policy import Policy, Way
from seed_server.egress.target import Target, parse
from seed_server.egress.verdict import Denied, Failure, bad_request, reply
from tests.fuzz.driver import Target as Fuzzed
from tests.fuzz.driver import drive_targets

SHOOT = networks(["10.250.0.0/16", "fd00:30::/64"])
POLICY = Policy(SHOOT, refused=((networks(["10.242.0.0/16"])[0], "the seed's"),))
EVERYTHING = Policy(networks(["0.0.0.0/0", "::/0"]))
ONE_LINE = re.compile(rb"HTTP/1\.1 [45][0-9][0-9] [ -~]{1,200}\r\n\r\n")
SERVER = ip_address("10.250.0.10")

HEADS = [
    b"CONNECT 10.250.0.12:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"CONNECT [fd00:30::1]:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nearly",
    b"CONNECT node-1.example:10250 HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\nProxy-Authorization: Basic x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
]
TOKENS = (
    b"\r\n", b"\n", b"\r", b" ", b":", b"\0", b"\xff", b"\t", b"[", b"]", b"%", b"@", b"/", b".", b"::", b"::ffff:", b"0x7f", b"0177", b"127.1",
    b"127.0.0.1", b"169.254.169.254", b"2130706433", b"localhost", b"%25lo", b"CONNECT ", b" HTTP/1.1", b"HTTP/1.0", b"Host: b\r\n",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"65536", b"0", b"-1", b"\xc2\xb2", b"9" * 30, b" folded\r\n",
)  # fmt: skip
LINES = [
    encode(value)
    for value in (
        api.Configure(api.EgressConfig((("::", 9443),), TlsFiles("a", "b", "c"), api.UnixListen("/x", 1, None, 2), ("10.0.0.0/8",))),
        api.Carries("a", ("10.0.0.0/8",), "why", 1.5),
        api.Leaves("a"),
        api.Known("no client", 3.0),
        api.GetStats(),
        Drain(1.0),
        api.Ready((("::", 9443),), 1),
        api.Stats(1, 2, (("dial", "ok", 3),), ((0.1, 1), (-1.0, 2)), 0.5, 6, 7, "x"),
    )
]  # fmt: skip
QUESTION = dns.message.make_query("a.test.", "A", id=7)


def _answers() -> list[bytes]:
    plain = dns.message.make_response(QUESTION)
    plain.answer += [dns.rrset.from_text("a.test.", 60, "IN", "A", "10.250.0.1", "127.0.0.1")]
    alias = dns.message.make_response(QUESTION)
    alias.answer += [
        dns.rrset.from_text("a.test.", 60, "IN", "CNAME", "b.test."),
        dns.rrset.from_text("b.test.", 60, "IN", "A", "169.254.169.254"),
    ]
    return [plain.to_wire(), alias.to_wire(), QUESTION.to_wire()]


def bend(rng: random.Random, seed: bytes) -> bytes:
    """A few mutations of something right; sometimes nothing right at all, sometimes something very long."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(seed)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        where = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[where % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data[where:where] = rng.choice(TOKENS)
            case 2:
                del data[where : where + rng.randrange(1, 20)]
            case 3:
                data[where:where] = data[where : where + rng.randrange(1, 40)]
            case 4:
                data[where : where + 3] = rng.choice(TOKENS)
            case _:
                del data[where:]
    if rng.random() < 0.01:
        where = rng.randrange(len(data) + 1)
        data[where:where] = bytes([rng.choice(b"a1.\r\n: ")]) * rng.choice((300, 17_000, 40_000))
    return bytes(data)


def must_be_one_line(failure: Failure) -> None:
    assert ONE_LINE.fullmatch(reply(failure)), failure


def read_head(pieces: list[bytes]) -> tuple[object, bytes]:
    """The request or the kind of refusal, and what stood behind the head."""
    reader = RequestReader()
    for index, piece in enumerate(pieces):
        if piece:
            try:
                request = reader.feed(piece)
            except BadMessage as exc:
                must_be_one_line(bad_request(str(exc)))
                return BadMessage, b""
            if request is not None:
                return request, request.rest + b"".join(pieces[index + 1 :])
    return None, b""


def check_head(rng: random.Random, data: bytes) -> str:
    whole, rest = read_head([data])
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    parts, rest_of_parts = read_head([data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)])
    if not isinstance(whole, Request):
        assert whole is parts, (whole, parts)
        return "refused" if whole is BadMessage else "unfinished"
    assert isinstance(parts, Request)
    assert (whole.method, whole.target, whole.headers, rest) == (
        parts.method,
        parts.target,
        parts.headers,
        rest_of_parts,
    )
    try:
        target = proxy._target(whole)
    except Denied as exc:
        must_be_one_line(exc.failure)
        return "denied"
    assert whole.method == "CONNECT"
    assert data.endswith(rest)
    return "name" if isinstance(target.host, str) else check_address(target)


def check_address(target: Target) -> str:
    assert not isinstance(target.host, str)
    assert parse(str(target)) == target
    everywhere = EVERYTHING.judge(target.host)
    verdict = POLICY.judge(target.host)
    if isinstance(verdict, Failure):
        must_be_one_line(verdict)
        return "forbidden"
    assert verdict is Way.TUNNEL
    assert everywhere is Way.TUNNEL
    assert any(target.host.version == network.version and target.host in network for network in SHOOT)
    return "allowed"


def check_target(rng: random.Random, data: bytes) -> str:
    try:
        target = parse(data.decode("latin-1"))
    except ValueError as exc:
        must_be_one_line(bad_request(str(exc)))
        return "refused"
    # Whoever else reads it reads the same: no spaces, escapes or second meanings in it.
    assert re.fullmatch(rb"[A-Za-z0-9_.:\[\]-]+", data), data
    assert 1 <= target.port <= 65535
    if isinstance(target.host, str):
        assert not re.search(r"(^|\.)(0x[0-9a-f]*|[0-9]+)$", target.host), target
        assert parse(str(target)) == target
        return "name"
    return check_address(target)


def check_dns(rng: random.Random, data: bytes) -> str:
    answer = resolve.answer_to(QUESTION, data)
    if answer is None:
        return "refused"
    try:
        found = resolve.read(answer, "a.test", SERVER)
    except Denied as exc:
        must_be_one_line(exc.failure)
        return "denied"
    assert len(found) <= resolve.ADDRESSES_MAX
    for address in found:
        check_address(Target(address, 80))
    return "resolved"


def check_line(rng: random.Random, data: bytes) -> str:
    for decode in (lines.decode_event, lines.decode_command):
        try:
            value = decode(data)
        except BadMessage:
            continue
        assert decode(encode(value)) == value
        return "accepted"
    return "refused"


TARGETS: list[Fuzzed] = [
    (check_head, HEADS),
    (check_head, HEADS),
    (check_target, [head.split(b" ")[1] for head in HEADS]),
    (check_dns, _answers()),
    (check_line, LINES),
]


if __name__ == "__main__":
    sys.exit(drive_targets(__doc__, TARGETS, bend))
