"""Kinds of setting: what is accepted, what is refused and in which words."""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import kinds
from agent.kinds import Hidden, HostPort, Kind, choice, integer, number


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


COLOUR = choice(Colour)


EVERY_KIND = [value for value in vars(kinds).values() if isinstance(value, Kind)]
EVERY_KIND += [COLOUR, integer(-5, 5), number(0.5, 2)]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (integer(-5, 5), "-5", -5),
        (integer(1, 10), "007", 7),
        (number(0.5, 2), "1.25", 1.25),
        (COLOUR, "blue", Colour.BLUE),
        (kinds.BOOL, "false", False),
        (kinds.CIDR, "10.250.0.0/16", ip_network("10.250.0.0/16")),
        (kinds.CIDR, "10.250.0.7", ip_network("10.250.0.7/32")),
        (kinds.CIDR, "2001:DB8::/64", ip_network("2001:db8::/64")),
        (kinds.ADDRESS, "2001:db8::7", ip_address("2001:db8::7")),
        (kinds.LISTEN, "[::]:0", HostPort("::", 0)),
        (kinds.LISTEN, "0.0.0.0:8443", HostPort("0.0.0.0", 8443)),
        (kinds.TARGET, "VPN.example:8443", HostPort("VPN.example", 8443)),
        (kinds.TARGET, "[2001:db8::1]:443", HostPort("2001:db8::1", 443)),
        (kinds.SERVER_NAME, "192.0.2.1", "192.0.2.1"),
        (kinds.PROXY, "proxy.example:3128", HostPort("proxy.example", 3128)),
        (kinds.PROXY, "http://[2001:db8::1]:3128/", HostPort("2001:db8::1", 3128)),
        (kinds.HEADER, "X-Gardener-Destination: outbound|1194||a.b", ("X-Gardener-Destination", "outbound|1194||a.b")),
        (kinds.HEADER, "Reversed-VPN:a: b", ("Reversed-VPN", "a: b")),
        (kinds.IFNAME, "rz-seed_1.2", "rz-seed_1.2"),
        (kinds.PATH, "/a b", Path("/a b")),
        (kinds.SECRET_PATH, "pki/server.key", Path("pki/server.key")),
    ],
)
def test_accepted(kind: Kind[Any], text: str, value: Any) -> None:
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (integer(1, 65535), "70000", "not in 1..65535"),
        (integer(1, 65535), "1e3", "not a whole number"),
        (integer(1, 65535), "٣", "not a whole number"),
        (integer(1, 65535), "9" * 5000, "not a whole number"),
        (number(1, 3600), "inf", "not a number"),
        (number(1, 3600), "0.5", "not in 1..3600"),
        (COLOUR, "green", "not red or blue"),
        (kinds.BOOL, "yes", "not true or false"),
        (kinds.CIDR, "10.250.0.7/16", "has host bits set"),
        (kinds.CIDR, "10.250.0.0/33", "not a network such as"),
        (kinds.CIDR, "fe80::%eth0/64", "not a network such as"),
        (kinds.ADDRESS, "fe80::1%eth0", "not an IP address"),
        (kinds.ADDRESS, "010.0.0.1", "not an IP address"),
        (kinds.LISTEN, "localhost:1", "not an IP address"),
        (kinds.LISTEN, ":8443", "not an IP address"),
        (kinds.LISTEN, "::1:8443", "needs brackets"),
        (kinds.LISTEN, "[127.0.0.1]:8443", "brackets are for IPv6"),
        (kinds.LISTEN, "127.0.0.1", "has no port"),
        (kinds.LISTEN, "127.0.0.1:65536", "port: not in 0..65535"),
        (kinds.TARGET, "vpn.example:0", "port: not in 1..65535"),
        (kinds.TARGET, "vpn_example:1", "DNS label"),
        (kinds.TARGET, "10.0.0.256:1", "not an IP address"),
        (kinds.PROXY, "https://proxy:3128", "only http:// proxies"),
        (kinds.PROXY, "http://proxy", "has no port"),
        (kinds.PROXY, "http://proxy:1/path", "only a host and a port"),
        (kinds.PROXY, "http://[::1", "Invalid IPv6"),
        (kinds.HEADER, "Host: x", "written by the tunnel itself"),
        (kinds.IFNAME, "a" * 16, "1 to 15"),
        (kinds.IFNAME, "..", "1 to 15"),
        (kinds.IFNAME, "a/b", "1 to 15"),
        (kinds.IFNAME, "a%d", "1 to 15"),
    ],
)
def test_refused_in_words(kind: Kind[Any], text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.").replace("(", r"\(")) as caught:
        kind.parse(text)
    assert not isinstance(caught.value, Hidden)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (kinds.PROXY, "http://user:hunter2@proxy:3128"),
        (kinds.PROXY, "hunter2@proxy:3128"),
        (kinds.HEADER, "Proxy-Authorization: Basic hunter2"),
        (kinds.HEADER, "AUTHORIZATION: Bearer hunter2"),
        (kinds.HEADER, "X: hunter2\r\nEvil: 1"),
        (kinds.HEADER, "hunter2"),
        (kinds.SECRET_PATH, "user:hunter2"),
        (kinds.SECRET_PATH, "a\nhunter2"),
        (kinds.PATH, "a\nhunter2"),
        (kinds.TEXT, "a\nhunter2"),
    ],
)
def test_what_may_be_a_secret_is_refused_without_repeating_it(kind: Kind[Any], text: str) -> None:
    with pytest.raises(Hidden) as caught:
        kind.parse(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["-----BEGIN PRIVATE KEY-----", "A" * 43 + "=", f"PrivateKey={'b' * 43}="])
def test_keys_look_like_secrets(text: str) -> None:
    assert kinds.looks_secret(text)


@pytest.mark.parametrize(
    "text", ["pki/server.key", "a" * 200, "A" * 43, "A" * 44 + "=", "A" * 43 + "==", "192.168.128.0/17"]
)
def test_ordinary_values_do_not(text: str) -> None:
    assert not kinds.looks_secret(text)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_the_example_of_a_kind_is_accepted_and_shown_again(kind: Kind[Any]) -> None:
    value = kind.parse(kind.example)
    shown = kind.show(value)
    assert type(shown) in kind.toml
    assert kind.parse(str(shown).lower() if isinstance(shown, bool) else str(shown)) == value


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
@settings(max_examples=40, deadline=None)
@given(text=st.text() | st.text(alphabet="[]:./%@0123456789abcdefhtp-\n\0") | st.from_regex(r"\[.*\]:\d+"))
def test_any_text_is_a_value_or_a_valueerror(kind: Kind[Any], text: str) -> None:
    try:
        hash(kind.parse(text))
    except ValueError:
        return


@settings(deadline=None)
@given(st.sampled_from(["127.0.0.1", "::", "2001:db8::1", "a.b"]), st.integers(1, 65535))
def test_host_and_port_are_written_as_they_are_read(host: str, port: int) -> None:
    assert kinds.TARGET.parse(str(HostPort(host, port))) == (host, port)
