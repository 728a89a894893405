"""Heads as they arrive from real peers, whole and in pieces, and what each of them is answered."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.carrier.upgrade import (
    HEAD_MAX_BYTES,
    VERSION,
    Accepted,
    BadHead,
    Exchange,
    Rejection,
    Request,
    RequestReader,
    Response,
    accept_head,
    agreed_version,
    connect_exchange,
    field,
    in_words,
    judge_certificate,
    judge_request,
    malformed,
    reject_head,
    upgrade_exchange,
)
from agent.errors import BadMessage
from agent.identity import Identity, Role

PORT = 51820
UPGRADE = {"Host": "seed.test", "Connection": "Upgrade", "Upgrade": "connect-udp", "Capsule-Protocol": "?1"}


TARGET = "/.well-known/masque/udp/wg/51820/"


def request(target: str = TARGET, method: str = "GET", /, **headers: str | None) -> bytes:
    """A request's bytes; a keyword adds or (None) removes a header, with `_` for `-`."""
    fields = dict(UPGRADE)
    for name, value in headers.items():
        name = name.replace("_", "-")
        if value is None:
            del fields[name]
        else:
            fields[name] = value
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


def read(data: bytes) -> Request:
    head = RequestReader().feed(data)
    assert head is not None
    return head


def judge(data: bytes) -> Accepted | Rejection:
    return judge_request(read(data), PORT)


def refused(data: bytes) -> Rejection:
    verdict = judge(data)
    assert isinstance(verdict, Rejection)
    return verdict


def answer(head: bytes) -> Response:
    response = upgrade_exchange("seed.test").feed(head)
    assert response is not None
    return response


def feed(reader: RequestReader | Exchange, data: bytes, piece: int) -> None:
    for index in range(0, len(data), piece):
        assert reader.feed(data[index : index + piece]) is None


# The server's side


@pytest.mark.parametrize(
    "target",
    [
        TARGET,
        "/.well-known/masque/udp/wg/9/",
        "/.well-known/masque/udp/WG/51820/",
        "/.well-known/masque/udp/127.0.0.1/51820/",
        "/.well-known/masque/udp/127%2E0.0.1/51820/",
        "https://seed.test:8443/.well-known/masque/udp/127.0.0.1/51820/",
        "HTTP://seed.test/.well-known/masque/udp/wg/51820/",
    ],
)
def test_the_tunnel_is_given_for_our_own_target(target: str) -> None:
    assert judge(request(target)) == Accepted(0)


def test_a_device_is_asked_for_by_its_name() -> None:
    assert judge(request("/.well-known/masque/udp/wg-0a1b2c3d/51820/")) == Accepted(0, "wg-0a1b2c3d")
    assert judge(upgrade_exchange("seed.test", target="wg-0a1b2c3d").request) == Accepted(VERSION, "wg-0a1b2c3d")


@pytest.mark.parametrize(
    ("target", "status", "cause"),
    [
        ("/.well-known/masque/udp/wg-0a1b2c3/51820/", 403, "target"),
        ("/.well-known/masque/udp/wg-0a1b2c3d0/51820/", 403, "target"),
        ("/.well-known/masque/udp/wg-evil.test/51820/", 403, "target"),
        ("/.well-known/masque/udp/127.0.0.1/22/", 403, "target"),
        ("/.well-known/masque/udp/127.0.0.2/51820/", 403, "target"),
        ("/.well-known/masque/udp/169.254.169.254/80/", 403, "target"),
        ("/.well-known/masque/udp/%3A%3A1/51820/", 403, "target"),
        ("/.well-known/masque/udp/localhost/51820/", 403, "target"),
        ("/.well-known/masque/udp/wg/0/", 400, "malformed"),
        ("/.well-known/masque/udp/wg/65536/", 400, "malformed"),
        ("/.well-known/masque/udp/wg/%35%31/", 400, "malformed"),
        ("/.well-known/masque/udp//51820/", 400, "malformed"),
        ("/.well-known/masque/udp/wg/51820", 400, "malformed"),
        ("/.well-known/masque/udp/wg/51820/?x=1", 400, "malformed"),
        ("/.well-known/masque/udp/wg/51820/more", 400, "malformed"),
        ("/.well-known/masque/tcp/wg/51820/", 404, "path"),
        ("/", 404, "path"),
        ("*", 404, "path"),
        ("http://seed.test", 404, "path"),
    ],
)
def test_every_other_target_is_refused(target: str, status: int, cause: str) -> None:
    verdict = refused(request(target))
    assert (verdict.status, verdict.cause) == (status, cause)


def test_a_refused_target_says_so_in_proxy_status() -> None:
    head = reject_head(refused(request("/.well-known/masque/udp/10.0.0.1/53/"))).decode()
    assert head.startswith("HTTP/1.1 403 this is no open proxy")
    assert "Proxy-Status: rhizome; error=destination_ip_prohibited; details=" in head


@pytest.mark.parametrize("method", ["POST", "CONNECT", "get", "HEAD"])
def test_only_get_opens_a_tunnel(method: str) -> None:
    assert refused(request(TARGET, method)).status == 400


@pytest.mark.parametrize(
    "headers",
    [{"Upgrade": None}, {"Upgrade": "websocket"}, {"Connection": None}, {"Connection": "keep-alive"}, {"Upgrade": ""}],
)
def test_a_request_without_the_upgrade_is_told_to_upgrade(headers: dict[str, str | None]) -> None:
    verdict = refused(request(**headers))
    assert verdict.status == 426
    assert b"\r\nUpgrade: connect-udp\r\n" in reject_head(verdict)


def test_tokens_are_compared_without_case_and_within_lists() -> None:
    assert judge(request(Connection="keep-alive, UPGRADE", Upgrade="Connect-UDP")) == Accepted(0)


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "0"}, {"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}]
)
def test_content_is_malformed(headers: dict[str, str]) -> None:
    assert refused(request(**headers)).status == 400


@pytest.mark.parametrize(
    ("text", "version"), [("1", 1), ("3", 1), ("3;min=1", 1), ("2; min=1", 1), ("7;x=y;q", 1), ("1;max=9", 1)]
)
def test_a_newer_peer_gets_our_version(text: str, version: int) -> None:
    assert judge(request(Rhizome_Version=text)) == Accepted(version)


def test_a_mandatory_future_version_is_refused_in_words() -> None:
    verdict = refused(request(Rhizome_Version="3;min=2"))
    assert (verdict.status, verdict.cause) == (501, "version")
    assert verdict.words == "you need Rhizome-Version 2, this server speaks 1: upgrade the server first"


@pytest.mark.parametrize("text", ["", "0", "one", "-1", "1.5", "1, 1", "1;min=x y"])
def test_a_version_that_is_no_number_is_malformed(text: str) -> None:
    assert refused(request(Rhizome_Version=text)).status == 400


def test_any_host_is_accepted_because_proxies_rewrite_it() -> None:
    assert judge(request(Host="127.0.0.1:51820")) == Accepted(0)


def test_early_capsules_are_kept() -> None:
    assert read(request() + b"\x00\x40\x02\x00x").rest == b"\x00\x40\x02\x00x"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
    ],
)
def test_garbage_is_a_bad_head(data: bytes) -> None:
    with pytest.raises(BadHead, match=r"not an HTTP/1\.1 head") as caught:
        RequestReader().feed(data)
    assert malformed(caught.value).status == 400


@pytest.mark.parametrize("size", [HEAD_MAX_BYTES, 2 * HEAD_MAX_BYTES])
@pytest.mark.parametrize("whole", [True, False])
def test_a_head_longer_than_the_limit_is_refused_however_it_comes(size: int, whole: bool) -> None:
    data = request(Padding="x" * size)
    reader = RequestReader()
    with pytest.raises(BadHead, match="16384 bytes") as caught:
        feed(reader, data, len(data) if whole else 1000)
    assert (caught.value.status, malformed(caught.value).cause) == (431, "head_too_long")


@pytest.mark.parametrize("version", [b"1.0", b"2.0"])
def test_other_http_versions_cannot_be_upgraded(version: bytes) -> None:
    assert refused(request().replace(b"HTTP/1.1", b"HTTP/" + version)).status == 400


@given(st.binary(max_size=300), st.lists(st.integers(0, 600), max_size=5))
def test_a_request_reads_the_same_in_any_pieces(tail: bytes, cuts: list[int]) -> None:
    data = request() + tail
    reader = RequestReader()
    fed, head = 0, None
    for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        if cut > fed and head is None:
            head = reader.feed(data[fed:cut])
            fed = cut
    assert head is not None
    whole = read(data)
    assert (head.target, head.headers, head.rest) == (whole.target, whole.headers, data[len(request()) : fed])


# Who may come in


def test_a_client_of_this_control_plane_may_come_in() -> None:
    node = Identity("shoot--a", Role.SHOOT_CLIENT, "node-1")
    assert judge_certificate([str(node)], "shoot--a") == node


@pytest.mark.parametrize(
    ("uris", "cause", "words"),
    [
        ([], "identity", "0 URI names"),
        (["spiffe://shoot--a/sidecar/x", "spiffe://shoot--a/sidecar/y"], "identity", "2 URI names"),
        (["https://example.org"], "identity", "not a SPIFFE ID"),
        (["spiffe://shoot--a/admin/x"], "identity", "no role"),
        (["spiffe://shoot--b/shoot-client/n"], "control_plane", "of control plane shoot--b, this server .* shoot--a"),
        (["spiffe://shoot--a/seed-server"], "role", "may not act as a client"),
    ],
)
def test_everybody_else_is_denied_in_words(uris: list[str], cause: str, words: str) -> None:
    verdict = judge_certificate(uris, "shoot--a")
    assert isinstance(verdict, Rejection)
    assert (verdict.status, verdict.cause) == (403, cause)
    with pytest.raises(BadMessage, match=words):
        agreed_version(answer(reject_head(verdict)))


# The client's side


def test_the_request_on_the_wire() -> None:
    assert upgrade_exchange("seed.test:8443").request == (
        b"GET /.well-known/masque/udp/wg/51820/ HTTP/1.1\r\nHost: seed.test:8443\r\nConnection: Upgrade\r\n"
        b"Upgrade: connect-udp\r\nCapsule-Protocol: ?1\r\nRhizome-Version: 1\r\n\r\n"
    )


def test_client_and_server_agree() -> None:
    exchange = upgrade_exchange("seed.test")
    verdict = judge(exchange.request)
    assert verdict == Accepted(VERSION)
    assert isinstance(verdict, Accepted)
    response = exchange.feed(accept_head(verdict.version) + b"capsule")
    assert response is not None
    assert (agreed_version(response), response.rest) == (VERSION, b"capsule")


def test_a_plain_rfc_9298_server_is_version_zero() -> None:
    assert agreed_version(answer(accept_head(0))) == 0


def test_informational_answers_before_the_101_are_skipped() -> None:
    response = answer(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + accept_head(1) + b"x")
    assert (response.status, response.rest) == (101, b"x")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "^200 OK$"),
        (b"HTTP/1.1 403 not yours\r\nProxy-Status: a; error=b\r\n\r\n", r"403 not yours \(Proxy-Status: a; error=b\)"),
        (b"HTTP/1.1 101 Ok\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "101 without"),
        (accept_head(1).replace(b": 1\r\n", b": 2\r\n"), "Rhizome-Version 2, which was not offered"),
        (accept_head(1).replace(b": 1\r\n", b": yes\r\n"), "Rhizome-Version yes"),
        (accept_head(1).replace(b"Capsule-Protocol: ?1", b"Content-Length: 3"), "Content-Length"),
    ],
)
def test_any_other_answer_is_a_refusal_with_the_servers_words(head: bytes, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        agreed_version(answer(head))


def test_a_strangers_words_cannot_control_a_terminal() -> None:
    assert in_words(answer(b"HTTP/1.1 503 a\x80\xffb\r\n\r\n")) == "503 a??b"


def test_an_endless_head_is_cut_off() -> None:
    exchange = upgrade_exchange("seed.test")
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 500 + b"\r\n\r\n"
    with pytest.raises(BadMessage, match="16384 bytes"):
        feed(exchange, hints * 100, len(hints))


def test_connect_on_the_wire() -> None:
    exchange = connect_exchange("[2001:db8::1]:443", [("X-Gardener-Destination", "outbound|1194||a")], "user:pass")
    assert exchange.request == (
        b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"
        b"X-Gardener-Destination: outbound|1194||a\r\n"
        b"Proxy-Authorization: Basic " + base64.b64encode(b"user:pass") + b"\r\n\r\n"
    )


def test_a_proxys_answer_ends_at_its_head_whatever_length_it_claims() -> None:
    response = connect_exchange("a:443", (), None).feed(b"HTTP/1.1 200 ok\r\nContent-Length: 9\r\n\r\nxyz")
    assert response == Response(200, "ok", (("content-length", "9"),), b"xyz")


def test_a_header_that_http_cannot_carry_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValueError, match="header name or value") as caught:
        connect_exchange("a:443", [("X-Secret", "hush\r\nInjected: yes")], None)
    assert "hush" not in str(caught.value) and caught.value.__suppress_context__


@given(st.binary(min_size=1, max_size=400))
def test_no_answer_raises_anything_but_bad_message(data: bytes) -> None:
    for exchange in (upgrade_exchange("a"), Exchange("CONNECT", "a:1", [("Host", "a:1")])):
        try:
            response = exchange.feed(data)
        except BadMessage:
            continue
        assert response is None or field(response.headers, "x") is None


@given(st.text(max_size=600))
def test_a_rejection_is_always_one_well_formed_head(words: str) -> None:
    response = answer(reject_head(Rejection(403, "x", words, "http_request_denied")))
    assert response.status == 403 and response.rest == b""
