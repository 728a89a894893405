"""The route guard refuses what would cut a host off, and says which two prefixes meet, why it matters, and what to do."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from agent.guard import Protected, Reason, guard_routes

PROTECTED = (
    Protected(ip_network("10.0.0.5/32"), "own address on eth0"),
    Protected(ip_network("10.0.0.1/32"), "gateway on eth0"),
    Protected(ip_network("10.100.0.10/32"), "nameserver in /etc/resolv.conf"),
    Protected(ip_network("172.20.0.1/32"), "API server of this cluster, KUBERNETES_SERVICE_HOST"),
    Protected(ip_network("198.51.100.7/32"), "endpoint of the seed server"),
    Protected(ip_network("10.64.0.0/12"), "pods of the seed"),
    Protected(ip_network("2001:db8:1::5/128"), "own address on eth0"),
)


@pytest.mark.parametrize(
    "text",
    [
        "10.1.0.0/16",
        "100.96.0.0/11",
        "100.64.0.0/10",
        "192.168.128.0/17",
        "172.16.0.0/14",
        "242.0.0.0/8",
        "2001:db8:2::/48",
        "fd01::/64",
    ],
)
def test_ranges_of_a_shoot_pass(text: str) -> None:
    verdict = guard_routes([ip_network(text)], PROTECTED)
    assert verdict.allowed == (ip_network(text),)
    assert verdict.refused == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0/0", Reason.DEFAULT_ROUTE),
        ("::/0", Reason.DEFAULT_ROUTE),
        ("0.0.0.0/1", Reason.TOO_WIDE),
        ("128.0.0.0/1", Reason.TOO_WIDE),
        ("16.0.0.0/7", Reason.TOO_WIDE),
        ("8000::/1", Reason.TOO_WIDE),
        ("2000::/3", Reason.TOO_WIDE),
        ("2000::/15", Reason.TOO_WIDE),
        ("127.0.0.0/8", Reason.SPECIAL),
        ("127.0.0.53/32", Reason.SPECIAL),
        ("169.254.0.0/16", Reason.SPECIAL),
        ("169.254.169.254/32", Reason.SPECIAL),
        ("224.0.0.0/24", Reason.SPECIAL),
        ("239.255.255.250/32", Reason.SPECIAL),
        ("0.0.0.0/32", Reason.SPECIAL),
        ("255.255.255.255/32", Reason.SPECIAL),
        ("::/128", Reason.SPECIAL),
        ("::1/128", Reason.SPECIAL),
        ("::/16", Reason.SPECIAL),
        ("::ffff:10.0.0.0/104", Reason.SPECIAL),
        ("fe80::/64", Reason.SPECIAL),
        ("ff02::/16", Reason.SPECIAL),
        ("fd00:ec2::254/128", Reason.SPECIAL),
        ("10.0.0.0/8", Reason.CAPTURES),
        ("10.0.0.5/32", Reason.CAPTURES),
        ("172.20.0.0/16", Reason.CAPTURES),
        ("198.51.100.0/24", Reason.CAPTURES),
        ("10.65.0.0/16", Reason.CAPTURES),
        ("2001:db8:1::/64", Reason.CAPTURES),
    ],
)
def test_what_would_cut_the_host_off_is_refused(text: str, reason: Reason) -> None:
    verdict = guard_routes([ip_network(text)], PROTECTED)
    assert verdict.allowed == ()
    (refusal,) = verdict.refused
    assert (refusal.network, refusal.reason) == (ip_network(text), reason)


def test_a_refusal_names_both_prefixes_the_source_and_the_remedy() -> None:
    (refusal,) = guard_routes([ip_network("10.100.0.0/16")], PROTECTED).refused
    assert str(refusal) == (
        "route 10.100.0.0/16 refused: it would capture 10.100.0.10/32 (nameserver in /etc/resolv.conf); "
        "name ranges that leave it out"
    )


def test_a_refusal_names_three_conflicts_and_counts_the_rest() -> None:
    (refusal,) = guard_routes([ip_network("10.0.0.0/8")], PROTECTED).refused
    assert [str(conflict.network) for conflict in refusal.conflicts] == [
        "10.0.0.5/32",
        "10.0.0.1/32",
        "10.100.0.10/32",
        "10.64.0.0/12",
    ]
    assert "own address on eth0" in str(refusal)
    assert "and 1 more" in str(refusal)


def test_the_metadata_service_is_called_by_its_name() -> None:
    (refusal,) = guard_routes([ip_network("169.254.169.254/32")], ()).refused
    assert "the cloud's metadata service" in str(refusal)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "2000::/8", "127.0.0.0/8", "10.0.0.0/8"])
def test_every_reason_says_what_to_do(text: str) -> None:
    (refusal,) = guard_routes([ip_network(text)], PROTECTED).refused
    why, _, remedy = str(refusal).partition("; ")
    assert why.startswith(f"route {text} refused: it ")
    assert remedy.split()[0] in ("name", "remove")


def test_the_limits_can_be_moved_but_a_default_route_never_passes() -> None:
    routes = [ip_network(text) for text in ("0.0.0.0/0", "16.0.0.0/7", "32.0.0.0/12", "2000::/15", "::/0")]
    wide = guard_routes(routes, (), shortest_v4=0, shortest_v6=0)
    assert [refusal.reason for refusal in wide.refused] == [Reason.DEFAULT_ROUTE] * 2
    narrow = guard_routes(routes, (), shortest_v4=13, shortest_v6=32)
    assert narrow.allowed == ()


def test_order_and_number_are_kept() -> None:
    routes = [ip_network(text) for text in ("10.3.0.0/16", "10.0.0.5/32", "10.2.0.0/16", "0.0.0.0/0", "10.3.0.0/16")]
    verdict = guard_routes(routes, PROTECTED)
    assert verdict.allowed == (routes[0], routes[2], routes[4])
    assert [refusal.network for refusal in verdict.refused] == [routes[1], routes[3]]
