"""Which addresses are dialled, and what is never dialled whatever somebody declared."""

from ipaddress import ip_address, ip_network

import pytest

from agent.model import networks
from seed_server.egress.policy import Policy, Way
from seed_server.egress.verdict import Failure, Stage

POLICY = Policy(
    shoot=networks(["10.250.0.0/16", "100.96.0.0/11", "100.64.0.0/13", "fd00:30::/64"]),
    refused=((ip_network("192.168.128.0/17"), "the tunnel's own network"), (ip_network("10.242.0.0/16"), "the seed's")),
    direct=networks(["10.242.7.0/24"]),
    direct_names=("metrics.seed.example", ".in-seed.example"),
)
EVERYTHING = Policy(shoot=networks(["0.0.0.0/0", "::/0"]), direct=networks(["0.0.0.0/0", "::/0"]))


@pytest.mark.parametrize("text", ["10.250.0.0", "10.250.255.255", "100.127.255.255", "100.71.0.1", "fd00:30::1"])
def test_the_shoots_ranges_are_dialled_through_the_tunnel(text: str) -> None:
    assert POLICY.judge(ip_address(text)) is Way.TUNNEL


def test_exceptions_are_dialled_in_the_seed_even_within_its_own_ranges() -> None:
    assert POLICY.judge(ip_address("10.242.7.1")) is Way.SEED


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("192.168.128.1", "protected"),
        ("10.242.8.1", "protected"),
        ("10.251.0.0", "outside"),
        ("8.8.8.8", "outside"),
        ("fd00:31::1", "outside"),
        ("240.0.0.1", "outside"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: str, result: str) -> None:
    failure = POLICY.judge(ip_address(text))
    assert isinstance(failure, Failure)
    assert (failure.status, failure.stage, failure.result) == (403, Stage.POLICY, result)
    assert text in failure.words


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("0.0.0.0", "unspecified"), ("0.1.2.3", "unspecified"), ("::", "unspecified"), ("127.0.0.1", "loopback"), ("127.255.255.254", "loopback"),
        ("::1", "loopback"), ("169.254.169.254", "metadata"), ("169.254.170.2", "metadata"), ("169.254.1.1", "link-local"), ("fe80::1", "link-local"),
        ("febf::1", "link-local"), ("fec0::1", "link-local"), ("100.100.100.200", "metadata"), ("fd00:ec2::254", "metadata"), ("fd20:ce::254", "metadata"),
        ("168.63.129.16", "metadata"), ("192.0.0.192", "metadata"), ("224.0.0.1", "multicast"), ("239.255.255.255", "multicast"),
        ("255.255.255.255", "multicast"), ("ff02::1", "multicast"), ("::ffff:10.250.0.1", "embedded"), ("::ffff:127.0.0.1", "embedded"),
        ("::10.250.0.1", "embedded"), ("::ffff:0:10.250.0.1", "embedded"), ("64:ff9b::a9fe:a9fe", "embedded"), ("64:ff9b:1::1", "embedded"),
        ("2002:7f00:1::", "embedded"), ("2001:0:1::1", "embedded"), ("fd00:30::5efe:7f00:1", "embedded"), ("fd00:30::200:5efe:10.0.0.1", "embedded"),
    ],
)  # fmt: skip
def test_some_addresses_are_never_dialled(text: str, result: str) -> None:
    for verdict in (EVERYTHING.judge(ip_address(text)), EVERYTHING.judge_direct(ip_address(text))):
        assert isinstance(verdict, Failure)
        assert (verdict.status, verdict.result) == (403, result)


def test_names_of_exceptions() -> None:
    for name in ("metrics.seed.example", "a.in-seed.example", "b.a.in-seed.example"):
        assert POLICY.is_direct(name)
    for name in ("seed.example", "in-seed.example", "xin-seed.example", "metrics.seed.example.evil"):
        assert not POLICY.is_direct(name)


def test_an_exceptions_name_leads_nowhere_into_the_shoot() -> None:
    assert POLICY.judge_direct(ip_address("10.1.2.3")) is Way.SEED
    failure = POLICY.judge_direct(ip_address("10.250.0.1"))
    assert isinstance(failure, Failure)
    assert failure.result == "protected"
