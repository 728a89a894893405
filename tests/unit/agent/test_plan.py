"""Plans as people read them, and desired states that contradict themselves."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from agent.errors import ConfigError
from agent.host import SetFirewall, SetLink
from agent.model import Device, Endpoint, Observed, Peer, PresharedKey, PrivateKey, PublicKey, Route, Tunnel
from agent.plan import plan

A, B = PublicKey(b"a" * 32), PublicKey(b"b" * 32)
N1, N2 = ip_network("10.1.0.0/16"), ip_network("fd00:2::/64")
DEVICE = Device(
    "rz-seed",
    PrivateKey(b"k" * 32),
    listen_port=51820,
    fwmark=0x52,
    alias="rhizome seed-server 8f3a",
    addresses=frozenset({ip_interface("192.168.128.1/32"), ip_interface("fd8f::1/128")}),
    peers=frozenset(
        {Peer(A, frozenset({N1, N2}), Endpoint(ip_address("127.0.0.1"), 4500), PresharedKey(b"p" * 32), 25)}
    ),
)
WANT = Tunnel(
    (DEVICE,),
    frozenset({Route(N1, "rz-seed", ip_address("192.168.128.1")), Route(N2, "rz-seed", ip_address("fd8f::1"))}),
    "table inet rhizome {}",
    frozenset({("net.ipv4.ip_forward", "1")}),
)


def text(want: Tunnel, have: Tunnel | None = None, rules: frozenset[int] = frozenset()) -> list[str]:
    return [str(step) for step in plan(want, Observed(have or Tunnel(), rules=rules))]


def test_from_nothing() -> None:
    assert text(WANT) == [
        "nft -f rhizome.nft",
        "sysctl -w net.ipv4.ip_forward=1",
        "ip link add rz-seed mtu 1420 type wireguard # rhizome seed-server 8f3a",
        "wg set rz-seed listen-port 51820 fwmark 0x52 private-key (hidden)",
        f"wg set rz-seed peer {A} preshared-key (hidden) endpoint 127.0.0.1:4500 persistent-keepalive 25 "
        "allowed-ips +10.1.0.0/16,+fd00:2::/64",
        "ip address add 192.168.128.1/32 dev rz-seed",
        "ip address add fd8f::1/128 dev rz-seed",
        "ip link set rz-seed up",
        "ip -4 rule add not from all fwmark 0x52/0xff lookup 7117 pref 5000 protocol 84",
        "ip -6 rule add not from all fwmark 0x52/0xff lookup 7117 pref 5000 protocol 84",
        "ip route replace fd00:2::/64 dev rz-seed src fd8f::1 table 7117 proto 84",
        "ip route replace 10.1.0.0/16 dev rz-seed src 192.168.128.1 table 7117 proto 84",
    ]


def test_no_packet_takes_a_third_way_while_routes_change() -> None:
    """10.1.7.0/24 keeps its way although the way around it changes, and what went with the old way around goes when that has changed."""
    first, second = replace(WANT.devices[0], ifname="rz-a"), replace(WANT.devices[0], ifname="rz-b")

    def routed(**by: str) -> Tunnel:
        prefixes = {"around": "10.1.0.0/16", "inner": "10.1.7.0/24", "other": "10.1.8.0/24"}
        routes = {Route(ip_network(prefixes[name]), ifname) for name, ifname in by.items()}
        return replace(WANT, devices=(first, second), routes=frozenset(routes))

    steps = text(routed(around="rz-b", inner="rz-a"), routed(around="rz-a", other="rz-b"), frozenset({4}))
    assert [" ".join(step.split()[2:6]) for step in steps] == [
        "replace 10.1.7.0/24 dev rz-a",
        "replace 10.1.0.0/16 dev rz-b",
        "del 10.1.8.0/24 dev rz-b",
    ]


def test_the_firewall_stands_before_the_link_is_up() -> None:
    steps = plan(WANT, Observed(Tunnel()))
    up = next(i for i, step in enumerate(steps) if isinstance(step, SetLink) and step.up)
    assert any(isinstance(step, SetFirewall) for step in steps[:up])


def test_a_devices_own_sysctls_come_when_it_is_there() -> None:
    own = replace(WANT, sysctls=WANT.sysctls | {("net.ipv4.conf.rz-seed.rp_filter", "2")})
    steps = text(own)
    assert steps.index("sysctl -w net.ipv4.ip_forward=1") < steps.index("ip link set rz-seed up")
    assert steps.index("sysctl -w net.ipv4.conf.rz-seed.rp_filter=2") > steps.index("ip link set rz-seed up")


def test_nothing_to_do() -> None:
    assert text(WANT, WANT, frozenset({4, 6})) == []


def test_to_nothing() -> None:
    assert text(Tunnel(), WANT, frozenset({4, 6})) == [
        "ip route del 10.1.0.0/16 dev rz-seed src 192.168.128.1 table 7117 proto 84",
        "ip route del fd00:2::/64 dev rz-seed src fd8f::1 table 7117 proto 84",
        "ip link del rz-seed",
        "ip -4 rule del not from all fwmark 0x52/0xff lookup 7117 pref 5000 protocol 84",
        "ip -6 rule del not from all fwmark 0x52/0xff lookup 7117 pref 5000 protocol 84",
        "nft delete table inet rhizome",
    ]


def with_peers(*peers: Peer) -> Tunnel:
    return replace(WANT, devices=(replace(DEVICE, peers=frozenset(peers)),))


def test_a_prefix_that_moves_is_only_added() -> None:
    have = with_peers(Peer(A, frozenset({N1, N2})), Peer(B))
    assert text(with_peers(Peer(A, frozenset({N2})), Peer(B, frozenset({N1}))), have, frozenset({4, 6})) == [
        f"wg set rz-seed peer {B} allowed-ips +10.1.0.0/16"
    ]


def test_a_prefix_that_nobody_has_any_more_is_removed() -> None:
    have = with_peers(Peer(A, frozenset({N1, N2})))
    assert text(with_peers(Peer(A, frozenset({N2}))), have, frozenset({4, 6})) == [
        f"wg set rz-seed peer {A} allowed-ips -10.1.0.0/16"
    ]


def test_peers_leave_before_others_come() -> None:
    have = with_peers(Peer(A, frozenset({N1})))
    assert text(with_peers(Peer(B, frozenset({N1}))), have, frozenset({4, 6})) == [
        f"wg set rz-seed peer {A} remove",
        f"wg set rz-seed peer {B} allowed-ips +10.1.0.0/16",
    ]


def test_a_roamed_endpoint_and_a_port_that_nobody_manages_are_no_drift() -> None:
    have = with_peers(Peer(A, endpoint=Endpoint(ip_address("192.0.2.1"), 9)))
    assert text(with_peers(Peer(A)), have, frozenset({4, 6})) == []
    unmanaged = replace(WANT, devices=(replace(DEVICE, listen_port=None),))
    assert text(unmanaged, WANT, frozenset({4, 6})) == []


def test_a_preshared_key_can_be_cleared() -> None:
    have = with_peers(Peer(A, preshared_key=PresharedKey(b"p" * 32)))
    steps = plan(with_peers(Peer(A)), Observed(have, rules=frozenset({4, 6})))
    assert [getattr(step, "preshared_key", None) for step in steps] == [PresharedKey(bytes(32))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ifname": "a-name-that-is-too-long"}, "interface name"),
        ({"mtu_bytes": 1200}, "mtu 1200"),
        ({"up": False}, "is up"),
        ({"alias": "somebody else's"}, "alias"),
        ({"addresses": frozenset({ip_interface("192.168.128.1/17")})}, "host address"),
        ({"peers": frozenset({Peer(A, frozenset({N1})), Peer(B, frozenset({N1}))})}, "claimed by two peers"),
        ({"peers": frozenset({Peer(A), Peer(A, frozenset({N1}))})}, "one public key"),
    ],
)
def test_a_device_that_no_host_could_hold(change: dict[str, object], words: str) -> None:
    bad = replace(DEVICE, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        plan(Tunnel((bad,)), Observed(Tunnel()))


def test_routes_that_no_host_could_hold() -> None:
    routes = {Route(N1, "eth0"), Route(N2, "rz-seed", ip_address("fd8f::9"))}
    with pytest.raises(ConfigError) as caught:
        plan(Tunnel((DEVICE, DEVICE), frozenset(routes | {Route(N1, "rz-seed")})), Observed(Tunnel()))
    assert len(caught.value.problems) == 4
