"""What is forwarded and which sysctls it takes."""

from ipaddress import ip_address

from agent.model import networks
from shoot_client.gateway import forwarded, sysctls


def test_the_nodes_own_addresses_need_no_forwarding() -> None:
    carries = networks(["10.250.0.2/32", "10.250.0.3/32", "100.96.1.0/24"])
    assert forwarded(carries, [ip_address("10.250.0.2")]) == networks(["10.250.0.3/32", "100.96.1.0/24"])


def test_sysctls_follow_the_families_that_are_forwarded() -> None:
    assert sysctls(()) == frozenset()
    assert sysctls(networks(["100.96.1.0/24"])) == {("net.ipv4.ip_forward", "1")}
    assert sysctls(networks(["fd00::/64"])) == {("net.ipv6.conf.all.forwarding", "1")}
