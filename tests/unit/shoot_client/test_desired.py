"""A shoot node as its server's grant wants it."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from agent.client.role import KEEPALIVE_S, BesideView, View
from agent.messages import Grant
from agent.model import Device, Endpoint, PresharedKey, PrivateKey, PublicKey, Tunnel, networks
from agent.plan import check
from shoot_client.desired import Node, tunnel

KEY = PublicKey(b"s" * 32)
GRANT = Grant(
    version=1,
    epoch="e1",
    public_keys=(("stream", KEY),),
    addresses=(ip_address("192.168.128.2"), ip_address("fd8f::2")),
    servers=(ip_address("192.168.128.1"), ip_address("fd8f::1")),
    tunnel_networks=networks(["192.168.128.0/17", "fd8f::/96"]),
    carries=networks(["10.250.0.2/32", "100.96.1.0/24"]),
    refused=(),
    mtu_bytes=1380,
    persistent_keepalive_s=0,
    lifetime_s=3600.0,
    preshared_key=PresharedKey(b"p" * 32),
)
DEVICE = Device("rz-shoot", PrivateKey(b"k" * 32), listen_port=51877)
NODE = Node(masquerade=True)
RELAY = Endpoint(ip_address("127.0.0.1"), 4500)


def test_a_grant_makes_a_tunnel_that_a_host_can_hold() -> None:
    want = tunnel(DEVICE, NODE, View(GRANT, RELAY))
    check(want)
    (device,) = want.devices
    (peer,) = device.peers
    assert peer.public_key == KEY and peer.endpoint == RELAY and peer.preshared_key == GRANT.preshared_key
    assert peer.allowed_ips == frozenset(GRANT.tunnel_networks), (
        "nobody but the tunnel's own addresses may send out of it"
    )
    assert peer.persistent_keepalive_s == KEEPALIVE_S
    assert device.mtu_bytes == 1380
    assert {str(a) for a in device.addresses} == {"192.168.128.2/32", "fd8f::2/128"}
    assert {(str(r.dst), str(r.source)) for r in want.routes} == {
        ("192.168.128.0/17", "192.168.128.2"),
        ("fd8f::/96", "fd8f::2"),
    }
    assert want.sysctls == {("net.ipv4.ip_forward", "1")}


def test_only_what_was_granted_can_be_reached_through_this_node() -> None:
    text = tunnel(DEVICE, NODE, View(GRANT, RELAY)).firewall
    assert text is not None
    assert "100.96.1.0/24" in text and "10.250.0.2" in text and "masquerade" in text
    plain = tunnel(DEVICE, replace(NODE, masquerade=False), View(GRANT, RELAY)).firewall
    assert plain is not None and "masquerade fully-random" not in plain
    partly = tunnel(DEVICE, replace(NODE, masquerade_exempt=networks(["100.96.1.0/26"])), View(GRANT, RELAY)).firewall
    assert partly is not None and "ct original ip daddr 100.96.1.0/26 return" in partly


def test_a_nodes_own_addresses_need_no_forwarding() -> None:
    alone = replace(GRANT, carries=networks(["10.250.0.2/32"]))
    assert tunnel(DEVICE, NODE, View(alone, RELAY), [ip_address("10.250.0.2")]).sysctls == frozenset()
    assert tunnel(DEVICE, NODE, View(alone, RELAY)).sysctls == {("net.ipv4.ip_forward", "1")}


def test_without_a_grant_the_device_stays_and_carries_nothing() -> None:
    want = tunnel(DEVICE, NODE, View(None, RELAY))
    check(want)
    assert want.devices == (DEVICE,) and not want.routes
    assert want.firewall is not None and "@initiators" not in want.firewall


def test_a_tunnel_network_that_the_guard_refused_is_left_out_everywhere() -> None:
    want = tunnel(DEVICE, NODE, View(GRANT, RELAY, frozenset({ip_network("192.168.128.0/17")})))
    check(want)
    assert {str(r.dst) for r in want.routes} == {"fd8f::/96"}
    assert next(iter(want.devices[0].peers)).allowed_ips == frozenset(networks(["fd8f::/96"]))
    assert want.firewall is not None and "192.168.128" not in want.firewall


def test_a_server_without_a_key_for_this_path_leaves_no_peer() -> None:
    want = tunnel(DEVICE, NODE, View(replace(GRANT, public_keys=(("direct", KEY),)), RELAY))
    assert isinstance(want, Tunnel) and not want.devices[0].peers


BESIDE = Device("rz-shoot-b", PrivateKey(b"K" * 32), listen_port=51879)
OTHER = replace(GRANT, public_keys=(("stream", PublicKey(b"t" * 32)),), preshared_key=PresharedKey(b"q" * 32))
LOOSE = frozenset({("net.ipv4.conf.rz-shoot-b.rp_filter", "2")})


def test_a_second_device_accepts_the_same_and_waits_for_routes() -> None:
    want = tunnel(DEVICE, NODE, View(GRANT, RELAY, beside=BesideView(BESIDE, OTHER, None, LOOSE)))
    check(want)
    first, second = want.devices
    (peer,), (mine,) = second.peers, first.peers
    assert peer.allowed_ips == mine.allowed_ips and second.addresses == first.addresses
    assert (peer.public_key, peer.preshared_key) == (PublicKey(b"t" * 32), OTHER.preshared_key)
    assert {(r.ifname, r.metric) for r in want.routes} == {("rz-shoot", 0), ("rz-shoot-b", 200)}
    assert want.firewall is not None and '"rz-shoot-b"' in want.firewall and "51879" in want.firewall
    assert want.sysctls >= LOOSE


def test_a_second_device_that_the_server_has_not_granted_yet_is_left_as_it_is() -> None:
    """An earlier run may have made it, and packets may be on their way by it: the firewall lets them in."""
    want = tunnel(DEVICE, NODE, View(GRANT, RELAY, beside=BesideView(BESIDE, None, None, LOOSE)))
    check(want)
    assert [device.ifname for device in want.devices] == ["rz-shoot"] and LOOSE.isdisjoint(want.sysctls)
    assert want.firewall is not None and '"rz-shoot-b"' in want.firewall
