"""One spelling per address, and no name that another reader would take for an address."""

from ipaddress import ip_address

import pytest

from seed_server.egress.target import Target, parse


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.250.0.12:10250", ip_address("10.250.0.12"), 10250),
        ("[fd00:10::1]:443", ip_address("fd00:10::1"), 443),
        ("[FD00:10:0::1]:443", ip_address("fd00:10::1"), 443),
        ("[::ffff:10.0.0.1]:443", ip_address("::ffff:10.0.0.1"), 443),
        ("ip-10-0-0-1.ec2.internal:10250", "ip-10-0-0-1.ec2.internal", 10250),
        ("Node-1.Example.:65535", "node-1.example", 65535),
        ("node_1:1", "node_1", 1),
        ("1a:80", "1a", 80),
        ("0x7f.example:80", "0x7f.example", 80),
    ],
)
def test_good_targets(text: str, host: object, port: int) -> None:
    assert parse(text) == Target(host, port)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":80", "a", "a:", "a:0", "a:00", "a:080", "a:65536", "a:99999", "a:-1", "a:+1", "a:1 ", "a:1e3", "a:0x50", "a:８０",
        "a b:80", " a:80", "a\t:80", "a\0:80", "a\r\n:80", "u@a:80", "u:p@a:80", "http://a:80", "//a:80", "/a:80", "a/b:80", "a?b:80", "a#b:80",
        "a\\b:80", "a..b:80", ".a:80", "a..:80", "-a:80", "a-:80", "%31:80", "a%2eb:80", "ａ:80", "é.example:80", "*:80", "a;b:80", "a,b:80",
        f"{'a' * 64}:80", f"{'a.' * 127}a:80", f"{'a' * 300}:80",
        "127.1:80", "127.0.1:80", "2130706433:80", "0x7f000001:80", "0x7f.0.0.1:80", "0177.0.0.1:80", "017700000001:80", "127.0.0.01:80",
        "127.0.0.1.:80", "1.2.3:80", "1.2.3.4.5:80", "1.2.3.256:80", "1.2.3.-4:80", "a.1:80", "a.0x1:80", "0x:80", "a.0x:80", "0:80", "00:80",
        "１２７.0.0.1:80", "1.2.3.4%eth0:80", "1.2.3.4/8:80", "①.0.0.1:80",
        "::1:80", "fd00::1:80", "[::1:80", "::1]:80", "[[::1]]:80", "[::1]]:80", "[]:80", "[:]:80", "[1.2.3.4]:80", "[node]:80", "[::1]", "[::1]:",
        "[fe80::1%eth0]:80", "[fe80::1%25eth0]:80", "[::1%]:80", "[v1.a]:80", "[::1 ]:80", "[ ::1]:80", "[::g]:80", "[1::2::3]:80", "[::1/64]:80",
        "[::ffff:0127.0.0.1]:80", "[::ffff:127.1]:80", "[00000::1]:80", "[::1]x:80", "x[::1]:80", "[::1].:80",
    ],
)  # fmt: skip
def test_everything_else_is_an_error_that_repeats_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]{3}") as caught:
        parse(text)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
