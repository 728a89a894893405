"""The netlink codec, what counts as our change, sysctl paths, and how errors are told. Needs no root and no namespace."""

from __future__ import annotations

import errno
import struct
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.exceptions import NetlinkError

from agent import nlmsg, rtnetlink, sysctl
from agent.changes import Interest, concerns
from agent.errors import ConfigError, HostError, Retry, Unsupported
from agent.model import ROUTE_PROTOCOL, ROUTE_TABLE, Route
from agent.netlink import LinuxNetStack, _translated
from agent.nlmsg import (
    NETFILTER,
    ROUTE,
    InterruptedDump,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    messages,
    refusal,
)

NAMES = {3: "wg0", 4: "wg1"}
ROUTES = [
    Route(ip_network("10.1.0.0/16"), "wg0"),
    Route(ip_network("10.1.2.3/32"), "wg1", ip_address("192.168.128.2"), 50),
    Route(ip_network("0.0.0.0/0"), "wg0"),
    Route(ip_network("fd00:1::/64"), "wg0", ip_address("fd8f::2")),
    Route(ip_network("::/0"), "wg1", metric=7),
]


def index(ifname: str) -> int:
    return next(number for number, name in NAMES.items() if name == ifname)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_survives_its_message(route: Route) -> None:
    request = rtnetlink.replace_request(route, index(route.ifname))
    assert request.kind == rtnetlink.NEW_ROUTE
    assert rtnetlink.decode(request.body, NAMES.__getitem__) == route


def test_the_kernels_default_metric_of_ipv6_is_none() -> None:
    body = rtnetlink.replace_request(Route(ip_network("fd00:1::/64"), "wg0", metric=1024), 3).body
    assert rtnetlink.decode(body, NAMES.__getitem__) == Route(ip_network("fd00:1::/64"), "wg0")


@pytest.mark.parametrize(
    ("change", "value"),
    [(2, 64), (3, 8), (5, ROUTE_PROTOCOL + 1)],
    ids=["from a source", "of a type of service", "of another protocol"],
)
def test_a_route_that_cannot_be_ours_is_not_shown(change: int, value: int) -> None:
    body = bytearray(rtnetlink.replace_request(ROUTES[0], 3).body)
    body[change] = value
    assert rtnetlink.decode(bytes(body), NAMES.__getitem__) is None


def test_a_route_of_another_table_is_not_shown() -> None:
    body = rtnetlink.replace_request(ROUTES[0], 3).body
    other = body.replace(struct.pack("=I", ROUTE_TABLE), struct.pack("=I", ROUTE_TABLE + 1))
    assert rtnetlink.decode(other, NAMES.__getitem__) is None


@pytest.mark.parametrize("kind", [5, 8, 9, 18, 22, 30])
def test_a_route_with_what_we_never_set_is_shown_as_bent(kind: int) -> None:
    body = rtnetlink.replace_request(ROUTES[0], 3).body + attribute(kind, bytes(4))
    decoded = rtnetlink.decode(body, NAMES.__getitem__)
    assert decoded is not None
    assert (decoded.dst, decoded.ifname) == (ROUTES[0].dst, "")


def test_deleting_names_the_device_only_if_there_is_one() -> None:
    with_device = attributes(rtnetlink.delete_request(ROUTES[0], 3).body, rtnetlink.RTMSG.size)
    without = attributes(rtnetlink.delete_request(ROUTES[0], None).body, rtnetlink.RTMSG.size)
    assert with_device.keys() - without.keys() == {rtnetlink.RTA_OIF}


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_nothing(data: bytes) -> None:
    for message in messages(data):
        attributes(message.body)
        assert len(message.body) <= len(data)


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_survive(values: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(kind, payload) for kind, payload in values.items())) == values


def packed(kind: int, body: bytes, flags: int = 0, port: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, port) + body + bytes(-len(body) & 3)


def test_messages_are_taken_apart() -> None:
    found = list(messages(packed(24, b"abcde", 2, 99) + packed(25, b"") + b"rest"))
    assert found == [Message(24, 2, 1, 99, b"abcde"), Message(25, 0, 1, 0, b"")]


def test_a_refusal_has_the_kernels_words_or_the_systems() -> None:
    refused = struct.pack("=i", -errno.EINVAL) + packed(24, b"")
    text = attribute(1, b"Invalid prefsrc address\0")
    plain = refusal(Message(nlmsg.ERROR, 0, 1, 0, refused))
    capped = refusal(Message(nlmsg.ERROR, nlmsg.F_CAPPED | nlmsg.F_ACK_TLVS, 1, 0, refused + text))
    whole = struct.pack("=i", -errno.EINVAL) + packed(24, b"the request")
    uncapped = refusal(Message(nlmsg.ERROR, nlmsg.F_ACK_TLVS, 1, 0, whole + text))
    assert plain is not None and (plain.errno, plain.strerror) == (errno.EINVAL, "Invalid argument")
    assert capped is not None and capped.strerror == "Invalid prefsrc address"
    assert refusal(Message(nlmsg.ERROR, 0, 1, 0, struct.pack("=i", 0) + packed(24, b""))) is None
    assert uncapped is not None and uncapped.errno == errno.EINVAL


class Kernel:
    """Plays the kernel's end of a netlink socket: `answers` are what each `send` is answered with, given its messages."""

    def __init__(self, *answers: Callable[[list[Message]], list[bytes]]) -> None:
        self._answers = list(answers)
        self._datagrams: list[bytes] = []
        self.sent = 0

    def send(self, datagram: bytes) -> None:
        self.sent += 1
        self._datagrams += self._answers.pop(0)(list(messages(datagram)))

    def recv(self, size: int) -> bytes:
        return self._datagrams.pop(0)


def connected(kernel: Kernel) -> NetlinkSocket:
    sock = NetlinkSocket.__new__(NetlinkSocket)
    sock._sock, sock._sequence = kernel, 0  # type: ignore[assignment]
    return sock


def reply(to: Message, kind: int, body: bytes = b"", flags: int = 0, sequence: int | None = None) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence or to.sequence, 0) + body + bytes(-len(body) & 3)


def ack(to: Message, code: int = 0) -> bytes:
    return reply(to, nlmsg.ERROR, struct.pack("=i", -code) + bytes(16), nlmsg.F_CAPPED)


def listing(*flags: int, last: int = 0) -> Callable[[list[Message]], list[bytes]]:
    def answer(sent: list[Message]) -> list[bytes]:
        parts = [reply(sent[0], 24, bytes([number]), flag) for number, flag in enumerate(flags)]
        return [*parts, reply(sent[0], nlmsg.DONE, bytes(4), last)]

    return answer


def test_a_listing_is_whole() -> None:
    assert connected(Kernel(listing(2, 2, 2))).dump(26, b"") == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize("torn", [listing(2, 2 | nlmsg.F_DUMP_INTR), listing(2, 2, last=nlmsg.F_DUMP_INTR)])
def test_a_torn_listing_is_taken_again(torn: Callable[[list[Message]], list[bytes]]) -> None:
    kernel = Kernel(torn, torn, listing(2, 2))
    assert connected(kernel).dump(26, b"") == [b"\0", b"\1"]
    assert kernel.sent == 3


def test_a_table_that_never_rests_is_an_error() -> None:
    with pytest.raises(InterruptedDump) as caught:
        connected(Kernel(*[listing(nlmsg.F_DUMP_INTR)] * 100)).dump(26, b"")
    assert caught.value.errno == errno.EAGAIN


@pytest.mark.parametrize("kind", [nlmsg.ERROR, nlmsg.DONE])
def test_a_refused_listing_is_an_error(kind: int) -> None:
    kernel = Kernel(lambda sent: [reply(sent[0], kind, struct.pack("=i", -errno.ENOENT) + bytes(16))])
    with pytest.raises(FileNotFoundError):
        connected(kernel).dump(26, b"")


def test_answers_to_an_earlier_call_are_passed_over() -> None:
    late = Kernel(lambda sent: [reply(sent[0], 24, b"old", sequence=99), *listing(2)(sent)])
    assert connected(late).dump(26, b"") == [b"\0"]
    late = Kernel(lambda sent: [reply(sent[0], nlmsg.ERROR, bytes(20), sequence=99), ack(sent[0])])
    assert connected(late).exchange([nlmsg.Request(24, 0, b"")]) == {}


def test_each_refusal_of_a_batch_lands_on_its_request() -> None:
    def answer(sent: list[Message]) -> list[bytes]:
        return [ack(sent[0]) + ack(sent[1], errno.ESRCH), ack(sent[2]), ack(sent[3], errno.EINVAL)]

    refused = connected(Kernel(answer)).exchange([nlmsg.Request(24, 0, bytes([n])) for n in range(4)])
    assert {position: error.errno for position, error in refused.items()} == {1: errno.ESRCH, 3: errno.EINVAL}
    assert connected(Kernel()).exchange([]) == {}


class Restless:
    """Plays pyroute2: the first `torn` dumps are interrupted."""

    def __init__(self, torn: int) -> None:
        self.torn = torn
        self.dumps = 0

    async def addr(self, command: str, **match: int) -> AsyncIterator[dict[str, Any]]:
        self.dumps += 1
        flags = nlmsg.F_DUMP_INTR if self.dumps <= self.torn else 0

        async def found() -> AsyncIterator[dict[str, Any]]:
            yield {"header": {"flags": 2}, "prefixlen": 32, "local": "192.168.128.2"}
            yield {"header": {"flags": 2 | flags}, "prefixlen": 128, "address": "fd8f::2"}

        return found()


async def test_a_torn_listing_of_pyroute2_is_taken_again() -> None:
    net = LinuxNetStack()
    net._ipr = Restless(torn=2)
    assert await net._addresses(3) == {ip_interface("192.168.128.2/32"), ip_interface("fd8f::2/128")}
    assert net._ipr.dumps == 3
    net._ipr = Restless(torn=1000)
    with pytest.raises(OSError, match="what keeps writing to it"):
        await net._addresses(3)


INTEREST = Interest(names={"wg0", "wg9"}, indexes={3}, ports={4711})


def link(number: int, name: str, alias: str = "") -> bytes:
    body = struct.pack("=BxHiII", 0, 1, number, 0, 0) + attribute(3, name.encode() + b"\0")
    return body + (attribute(20, alias.encode() + b"\0") if alias else b"")


def route(table: int) -> bytes:
    return rtnetlink.RTMSG.pack(2, 16, 0, 0, min(table, 252), 3, 0, 1, 0) + attribute(15, struct.pack("=I", table))


def rule(table: int) -> bytes:
    return bytes(12) + attribute(15, struct.pack("=I", table))


def netconf(number: int) -> bytes:
    return bytes(4) + attribute(1, struct.pack("=i", number))


def table(name: str, family: int = 1) -> bytes:
    return bytes([family, 0, 0, 0]) + attribute(1, name.encode() + b"\0")


NOTIFICATIONS: dict[str, tuple[int, int, bytes, bool]] = {
    "our link renamed": (ROUTE, 16, link(3, "renamed"), True),
    "a link of a name we asked for deleted": (ROUTE, 17, link(8, "wg0"), True),
    "a link of a name we asked for made": (ROUTE, 16, link(8, "wg9"), True),
    "a link with our alias": (ROUTE, 16, link(8, "other", "rhizome 7"), True),
    "somebody's link": (ROUTE, 16, link(8, "eth0", "uplink"), False),
    "an address of our link": (ROUTE, 20, struct.pack("=BBBBI", 2, 32, 0, 0, 3), True),
    "an address of somebody's link": (ROUTE, 21, struct.pack("=BBBBI", 2, 32, 0, 0, 8), False),
    "a route of our table": (ROUTE, 25, route(ROUTE_TABLE), True),
    "a route of the main table": (ROUTE, 25, route(254), False),
    "a rule for our table": (ROUTE, 33, rule(ROUTE_TABLE), True),
    "a rule for the main table": (ROUTE, 33, rule(254), False),
    "a sysctl of all links": (ROUTE, 80, netconf(-1), True),
    "a sysctl of our link": (ROUTE, 80, netconf(3), True),
    "a sysctl of somebody's link": (ROUTE, 80, netconf(8), False),
    "a kind we did not ask for": (ROUTE, 68, b"", False),
    "our nft table": (NETFILTER, 0x0A00 | 8, table("rhizome"), True),
    "an nft table with a longer name": (NETFILTER, 0x0A00 | 8, table("rhizome2"), False),
    "an nft table of another family": (NETFILTER, 0x0A00 | 8, table("rhizome", family=2), False),
    "a new generation": (NETFILTER, 0x0A00 | 15, bytes([0, 0, 0, 0]) + attribute(1, bytes(4)), False),
}


@pytest.mark.parametrize("name", NOTIFICATIONS)
def test_only_what_is_ours_concerns_us_and_only_from_others(name: str) -> None:
    protocol, kind, body, ours = NOTIFICATIONS[name]
    assert concerns(protocol, Message(kind, 0, 0, 99, body), INTEREST) is ours
    assert not concerns(protocol, Message(kind, 0, 0, 4711, body), INTEREST)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net.ipv6.conf.all.forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"),
        ("net.ipv4.conf.eth0/100.rp_filter", "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
    ],
)
def test_a_sysctl_has_its_file(key: str, path: str) -> None:
    assert sysctl.path_of(key) == Path(path)


@pytest.mark.parametrize(
    "key",
    ["", "net", "net.", "net..x", "kernel.panic", "net./.x", "net.//.x", "net.ipv4.a b", "net.ipv4.x\n", "/net.ipv4.x"],
)
def test_a_key_that_leads_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="sysctl"):
        sysctl.path_of(key)


def _fail(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, "told so")

    return fail


def test_a_read_only_proc_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", _fail(errno.EROFS))
    with pytest.raises(Unsupported, match="securityContext"):
        sysctl.write("net.ipv4.ip_forward", "1")


def test_errors_are_translated_with_their_errno() -> None:
    for exc in (
        NetlinkError(errno.EINVAL, "Invalid prefsrc address"),
        OSError(errno.EINVAL, "Invalid prefsrc address"),
    ):
        error = _translated("ip route replace 10.0.0.0/8", exc)
        assert isinstance(error, HostError)
        assert error.errno == errno.EINVAL
        assert str(error) == "ip route replace 10.0.0.0/8: Invalid prefsrc address (EINVAL)"
    denied = _translated("ip rule add", NetlinkError(errno.EPERM, "Operation not permitted"))
    assert isinstance(denied, Unsupported)
    assert denied.retry is Retry.NEVER
    assert "CAP_NET_ADMIN" in str(denied)
