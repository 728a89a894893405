"""The hub's firewall under real packets: who dials what nobody can reach hears of it."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.firewall import Firewall, Transit, Unreachable
from tests.netns.firewall_landscape import FAMILIES, PODS, TUNNEL, Landscape, networks, pick

#: To it the workload is a sidecar, whose device is eth0, and the node a client.
HUB = Firewall(
    frozenset({"eth0", "tun0"}),
    networks(*TUNNEL, *PODS, "10.50.0.0/24", "fd50::/64"),
    mtu_bytes=1400,
    hubs=frozenset({"tun0"}),
    transits=frozenset({Transit(networks("10.50.0.0/24", "fd50::/64"), networks(*PODS))}),
)


@FAMILIES
def test_who_dials_what_nobody_reaches_hears_of_it_at_once_and_what_is_open_goes_on_for_a_while(
    land: Landscape, v6: bool
) -> None:
    workload, pod = pick(v6, "10.50.0.9", "fd50::9", "10.1.0.9", "fd01::9")
    listener = land.listen(land.pod, pod)
    land.apply(land.seed, HUB)
    client = land.tcp(land.workload, workload)
    client.connect((pod, land.port))
    served, _ = listener.accept()

    gone = ((ip_address(pod), ip_address(pod)),)
    land.apply(land.seed, replace(HUB, unreachable=Unreachable(suspended=gone)))
    assert land.tcp(land.workload, workload).connect_ex((pod, land.port)) == errno.ECONNREFUSED
    with served:
        client.send(b"still")
        assert served.recv(16) == b"still"

        land.apply(land.seed, replace(HUB, unreachable=Unreachable(abandoned=gone)))
        client.send(b"heard?")
        with pytest.raises(ConnectionResetError):
            client.recv(16)
    asker = land.udp(land.workload, workload)
    asker.connect((pod, land.port))
    asker.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        asker.recv(16)
    assert land.counter(land.seed, "unreachable") >= 2


@FAMILIES
def test_a_storm_of_dials_is_refused_as_a_whole(land: Landscape, v6: bool) -> None:
    """ICMP has a rate limit, and with it most of them would hear nothing."""
    land.run(land.seed, "sysctl -qw net.ipv4.icmp_ratelimit=1000 net.ipv6.icmp.ratelimit=1000")
    workload, pod = pick(v6, "10.50.0.9", "fd50::9", "10.1.0.9", "fd01::9")
    land.apply(land.seed, replace(HUB, unreachable=Unreachable(suspended=((ip_address(pod), ip_address(pod)),))))
    try:
        for _ in range(50):
            dial = land.tcp(land.workload, workload)
            assert dial.connect_ex((pod, land.port)) == errno.ECONNREFUSED
    finally:
        land.run(land.seed, "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0")
