"""The side effects of the kernel that make a difference to a plan. Each was seen on Linux 6.1 and 6.18."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from agent.errors import HostError
from agent.fakes.host import FakeHost
from agent.model import Route

A4, B4, A6 = ip_interface("10.0.0.1/32"), ip_interface("10.0.0.2/32"), ip_interface("fd00::1/128")
FROM_A4 = Route(ip_network("10.1.0.0/16"), "wg0", ip_address("10.0.0.1"))
PLAIN4 = Route(ip_network("10.2.0.0/16"), "wg0")
FROM_A6 = Route(ip_network("fd01::/64"), "wg0", ip_address("fd00::1"))
PLAIN6 = Route(ip_network("fd02::/64"), "wg0")


@pytest.fixture
def host() -> FakeHost:
    host = FakeHost()
    host.add_link("wg0", "wireguard")
    for address in (A4, B4, A6):
        host.add_address("wg0", address)
    host.set_up("wg0", True)
    for route in (FROM_A4, PLAIN4, FROM_A6, PLAIN6):
        host.replace_route(route)
    return host


def routes(host: FakeHost) -> set[Route]:
    return set(host.routes.values())


def test_an_ipv4_route_goes_with_its_source_and_an_ipv6_route_loses_it(host: FakeHost) -> None:
    host.delete_address("wg0", A4)
    host.delete_address("wg0", A6)
    assert routes(host) == {PLAIN4, PLAIN6, Route(FROM_A6.dst, "wg0")}


def test_with_the_last_ipv4_address_go_all_ipv4_routes(host: FakeHost) -> None:
    host.delete_address("wg0", A4)
    host.delete_address("wg0", B4)
    assert routes(host) == {FROM_A6, PLAIN6}


def test_an_ipv6_address_takes_no_ipv4_routes_along() -> None:
    host = FakeHost()
    host.add_link("wg0", "wireguard")
    host.add_address("wg0", A6)
    host.set_up("wg0", True)
    host.replace_route(PLAIN4)
    host.delete_address("wg0", A6)
    assert routes(host) == {PLAIN4}


def test_link_down_takes_all_routes_and_the_ipv6_addresses(host: FakeHost) -> None:
    host.set_up("wg0", False)
    assert routes(host) == set()
    assert host.links["wg0"].addresses == {A4, B4}
    host.set_up("wg0", True)
    assert routes(host) == set()


def test_a_small_mtu_ends_ipv6(host: FakeHost) -> None:
    host.set_mtu("wg0", 1279)
    assert routes(host) == {FROM_A4, PLAIN4}
    assert host.links["wg0"].addresses == {A4, B4}
    with pytest.raises(HostError) as caught:
        host.add_address("wg0", A6)
    assert caught.value.errno == errno.EINVAL


def test_deleting_a_link_takes_everything_of_it_and_nothing_else(host: FakeHost) -> None:
    host.add_link("eth0.7", "vlan")
    host.set_up("eth0.7", True)
    other = Route(ip_network("10.9.0.0/16"), "eth0.7")
    host.replace_route(other)
    host.set_sysctl("net.ipv4.conf.eth0/7.forwarding", "1")
    host.set_sysctl("net.ipv4.conf.wg0.forwarding", "1")
    host.set_sysctl("net.ipv4.ip_forward", "1")
    host.delete_link("wg0")
    assert routes(host) == {other}
    assert set(host.sysctls) == {"net.ipv4.conf.eth0/7.forwarding", "net.ipv4.ip_forward"}


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda host: host.add_link("wg0", "tun"), errno.EEXIST),
        (lambda host: host.delete_link("wg1"), errno.ENODEV),
        (lambda host: host.add_address("wg0", A4), errno.EEXIST),
        (lambda host: host.delete_address("wg0", ip_interface("10.0.0.9/32")), errno.EADDRNOTAVAIL),
        (lambda host: host.set_mtu("wg0", 67), errno.EINVAL),
        (lambda host: host.replace_route(Route(PLAIN4.dst, "wg1")), errno.ENODEV),
        (lambda host: host.replace_route(Route(PLAIN4.dst, "wg0", ip_address("10.0.0.9"))), errno.EINVAL),
        (lambda host: host.delete_route(Route(ip_network("10.3.0.0/16"), "wg0")), errno.ESRCH),
        (lambda host: host.delete_rule(4), errno.ENOENT),
        (lambda host: host.set_sysctl("net.ipv4.conf.wg1.forwarding", "1"), errno.ENOENT),
    ],
)
def test_refusals_have_the_errno_of_the_kernel(host: FakeHost, act: Callable[[FakeHost], object], code: int) -> None:
    told = []
    host.listeners.append(lambda: told.append(1))
    with pytest.raises(HostError) as caught:
        act(host)
    assert caught.value.errno == code
    assert not told


def test_a_route_needs_its_link_up(host: FakeHost) -> None:
    host.add_link("wg1", "wireguard")
    with pytest.raises(HostError) as caught:
        host.replace_route(Route(ip_network("10.9.0.0/16"), "wg1"))
    assert caught.value.errno == errno.ENETDOWN


def test_a_tun_gets_a_link_local_address_when_it_comes_up() -> None:
    host = FakeHost()
    host.add_link("rz0", "tun")
    host.add_link("rz1", "wireguard")
    host.set_up("rz0", True)
    host.set_up("rz1", True)
    assert [address.is_link_local for address in host.links["rz0"].addresses] == [True]
    assert host.links["rz1"].addresses == set()
