"""Any bytes in any chunking -> the same head, verdict or command, or our own BadMessage, never another exception, never a hang.

python -m tests.fuzz.fuzz_upgrade --seconds 60 [--seed N]: HTTP heads of both sides, and the lines of the control socket.
Prints how many inputs it tried; exits 1 with the input on a finding.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

from agent.carrier import api, ipc, upgrade
from agent.carrier.proxyenv import proxy_from_environment
from agent.companion.lines import Hello, encode
from agent.errors import BadMessage, ConfigError
from tests.fuzz.driver import Target, drive_targets

PORT = 51820
TLS = api.TlsFiles("ca", "crt", "key")
LINES = [
    encode(value)
    for value in (
        Hello("b", 1),
        api.Ready(1, 2),
        api.Up(1, "spiffe://a/b", "p", "v", 1, ("{}", "x")),
        api.Stats(1, 2, 3, 4, 5, (("codel", 6),), None, 0.5),
        api.Configure(api.DialConfig("h", 1, "n", TLS, 2, proxies=(api.Proxy("p", 3, (("a", "b"),)),))),
        api.Configure(api.ListenConfig((("::", 1),), TLS, 2, "a")),
        api.Send(1, '{"type":"grant"}'),
        api.Close(1, "r", 0.5),
    )
]
REQUESTS = [
    upgrade.upgrade_exchange("seed.test:443").request,
    upgrade.connect_exchange("seed.test:443", [("X-Gardener-Destination", "outbound|1194||a")], "u:p").request,
    b"GET https://a/.well-known/masque/udp/127.0.0.1/51820/ HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: connect-udp\r\nRhizome-Version: 3;min=1\r\nContent-Length: 0\r\n\r\n",
]
RESPONSES = [
    upgrade.accept_head(1),
    upgrade.accept_head(0),
    upgrade.reject_head(upgrade.Rejection(403, "target", 'not "that"', "destination_ip_prohibited")),
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 Connection established\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
]
TOKENS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b":", b"\0", b"\xff", b"\t", b";min=2", b"Upgrade: connect-udp\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: Upgrade\r\n", b"Rhizome-Version: 99;min=98\r\n", b"HTTP/1.1", b"HTTP/9.9", b"101", b"200",
    b"%", b"%2e", b"/../", b"Host: b\r\n", b" folded\r\n", b"{", b"}", b"[", b'"', b"null", b"1e999", b"9" * 30, b"-1", b"true", b"NaN", b"\\u0000", b"\\ud800",
)  # fmt: skip


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
                del data[where : where + rng.randrange(1, 30)]
            case 3:
                data[where:where] = data[where : where + rng.randrange(1, 60)]
            case 4:
                data[where : where + 3] = rng.choice(TOKENS)
            case _:
                del data[where:]
    if rng.random() < 0.02:
        where = rng.randrange(len(data) + 1)
        data[where:where] = bytes([rng.choice(b"aA\r\n: ")]) * rng.choice((1000, 16_000, 17_000, 40_000))
    return bytes(data) + rng.choice((b"", b"", rng.randbytes(rng.randrange(40))))


def chunks(rng: random.Random, data: bytes) -> list[bytes]:
    if len(data) < 400 and rng.random() < 0.2:
        return [data[index : index + 1] for index in range(len(data))]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def outcome(feed: Callable[[bytes], object], pieces: list[bytes]) -> tuple[object, int]:
    """What came of it, and how many bytes had been fed by then."""
    fed = 0
    for piece in filter(None, pieces):
        fed += len(piece)
        try:
            result = feed(piece)
        except BadMessage:
            return BadMessage, fed
        if result is not None:
            return result, fed
    return None, fed


def check_request(rng: random.Random, data: bytes) -> str:
    whole, _ = outcome(upgrade.RequestReader().feed, [data])
    parts, fed = outcome(upgrade.RequestReader().feed, chunks(rng, data))
    if not isinstance(whole, upgrade.Request):
        assert parts is whole, (whole, parts)
        return "refused" if whole is BadMessage else "unfinished"
    assert isinstance(parts, upgrade.Request)
    assert (parts.method, parts.target, parts.http_version, parts.headers) == (
        whole.method, whole.target, whole.http_version, whole.headers,
    )  # fmt: skip
    assert data.endswith(whole.rest) and whole.rest.startswith(parts.rest) and data[:fed].endswith(parts.rest)
    verdict = upgrade.judge_request(whole, PORT)
    if isinstance(verdict, upgrade.Accepted):
        assert 0 <= verdict.version <= upgrade.VERSION
        return "accepted"
    answer = upgrade.upgrade_exchange("a").feed(upgrade.reject_head(verdict))
    assert answer is not None and answer.status == verdict.status >= 400 and answer.rest == b""
    return "rejected"


def check_response(rng: random.Random, data: bytes) -> str:
    def exchange() -> upgrade.Exchange:
        return upgrade.upgrade_exchange("a") if connect else upgrade.connect_exchange("a:1", (), None)

    connect = rng.random() < 0.5
    whole, _ = outcome(exchange().feed, [data])
    parts, fed = outcome(exchange().feed, chunks(rng, data))
    if not isinstance(whole, upgrade.Response):
        assert parts is whole, (whole, parts)
        return "refused" if whole is BadMessage else "unfinished"
    assert isinstance(parts, upgrade.Response)
    assert (parts.status, parts.reason, parts.headers) == (whole.status, whole.reason, whole.headers)
    assert data.endswith(whole.rest) and data[:fed].endswith(parts.rest)
    assert upgrade.in_words(whole).isprintable()
    try:
        assert 0 <= upgrade.agreed_version(whole) <= upgrade.VERSION
    except BadMessage as exc:
        words = str(exc)
    else:
        return "accepted"
    assert words.isprintable()
    return "rejected"


def check_line(rng: random.Random, data: bytes) -> str:
    for decode in (ipc.decode_event, ipc.decode_command):
        try:
            value = decode(data)
        except BadMessage:
            continue
        assert decode(encode(value)) == value
        return "accepted"
    return "refused"


def check_environment(rng: random.Random, data: bytes) -> str:
    text = data.decode("latin-1")
    host, _, no_proxy = text.partition(" ")
    try:
        proxy = proxy_from_environment({"HTTPS_PROXY": text, "NO_PROXY": no_proxy}, host or "h", 443)
    except ConfigError:
        return "refused"
    assert proxy is None or proxy.host
    return "accepted"


URLS = [b"http://me:p%40ss@proxy.example:3128", b"[2001:db8::1]:8080", b"proxy .example.com,10.0.0.0/8,[::1]:443,*"]
TARGETS: list[Target] = [
    (check_request, REQUESTS),
    (check_response, RESPONSES),
    (check_line, LINES),
    (check_environment, URLS),
]


if __name__ == "__main__":
    sys.exit(drive_targets(__doc__, TARGETS, bend))
