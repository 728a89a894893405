"""A control-plane pod as its server's grant wants it."""

from dataclasses import replace
from ipaddress import ip_address

from agent.client.role import BesideView, DirectView, View
from agent.messages import Direct, Grant
from agent.model import Device, Endpoint, PresharedKey, PrivateKey, PublicKey, Tunnel, networks
from agent.plan import check
from agent.sidecar.desired import SidecarRole, without_daemon

KEY = PublicKey(b"s" * 32)
GRANT = Grant(
    version=1,
    epoch="e1",
    public_keys=(("stream", KEY),),
    addresses=(ip_address("192.168.128.8"), ip_address("fd8f::8")),
    servers=(ip_address("192.168.128.1"), ip_address("fd8f::1")),
    tunnel_networks=networks(["192.168.128.0/17", "fd8f::/96"]),
    carries=networks(["10.9.0.0/16"]),  # a server that talks nonsense
    refused=(),
    mtu_bytes=1380,
    persistent_keepalive_s=0,
    lifetime_s=3600.0,
    preshared_key=PresharedKey(b"p" * 32),
    routes=networks(["10.250.0.0/16", "100.64.0.0/13", "fd00:30::/64"]),
)
DEVICE = Device("rz-sidecar", PrivateKey(b"k" * 32), listen_port=51878)
RELAY = Endpoint(ip_address("127.0.0.1"), 4500)
REACHED = {"192.168.128.1/32", "fd8f::1/128", "10.250.0.0/16", "100.64.0.0/13", "fd00:30::/64"}


def tunnel(view: View) -> Tunnel:
    want = SidecarRole().tunnel(DEVICE, view)
    check(want)
    return want


def test_it_routes_what_it_may_reach_and_nothing_of_its_fellow_clients() -> None:
    want = tunnel(View(GRANT, RELAY))
    (device,) = want.devices
    (peer,) = device.peers
    assert peer.public_key == KEY and peer.endpoint == RELAY and peer.preshared_key == GRANT.preshared_key
    assert {str(n) for n in peer.allowed_ips} == REACHED
    assert {str(r.dst) for r in want.routes} == REACHED
    assert {str(r.source) for r in want.routes} == {"192.168.128.8", "fd8f::8"}
    assert not want.sysctls, "it needs no write access to /proc/sys"


def test_only_the_canary_may_begin_in_the_tunnel() -> None:
    text = tunnel(View(GRANT, RELAY)).firewall
    assert text is not None
    begins = [line.strip() for line in text.splitlines() if "jump destinations" in line]
    assert begins == ["ip saddr 192.168.128.1 jump destinations", "ip6 saddr fd8f::1 jump destinations"]
    opened = [line.split()[4] for line in text.splitlines() if '"opened" accept' in line]
    assert opened == ["192.168.128.8", "fd8f::8"]


def test_what_the_guard_refused_is_left_out_and_the_others_stay() -> None:
    refused = networks(["100.64.0.0/13"])
    want = tunnel(View(GRANT, RELAY, frozenset(refused)))
    assert {str(r.dst) for r in want.routes} == REACHED - {"100.64.0.0/13"}
    assert {str(n) for n in next(iter(want.devices[0].peers)).allowed_ips} == REACHED - {"100.64.0.0/13"}
    assert want.firewall is not None and "100.64" not in want.firewall


def test_without_a_grant_the_device_stays_and_reaches_nothing() -> None:
    want = tunnel(View(None))
    assert want.devices == (DEVICE,) and not want.routes


def test_a_grant_that_has_ended_leaves_routes_that_lead_nowhere() -> None:
    """And not by the pod's own way out, where somebody else may have the shoot's addresses."""
    want = tunnel(View(None, RELAY, frozenset(networks(["100.64.0.0/13"])), ended=GRANT))
    (device,) = want.devices
    assert not device.peers
    assert {str(r.dst) for r in want.routes} == {"10.250.0.0/16", "fd00:30::/64"}
    assert {r.ifname for r in want.routes} == {DEVICE.ifname}


def test_a_grant_without_routes_reaches_only_the_server() -> None:
    assert {str(r.dst) for r in tunnel(View(replace(GRANT, routes=()), RELAY)).routes} == {
        "192.168.128.1/32",
        "fd8f::1/128",
    }


# Without a daemon

SERVER = Endpoint(ip_address("10.1.0.7"), 51821)
OFFERED = Direct(KEY, "e1", (ip_address("192.168.128.2"),), (SERVER,), PresharedKey(b"q" * 32))
SECOND = Device("rz-sidecar-udp", PrivateKey(b"d" * 32), listen_port=51878)


def left(in_use: bool) -> Tunnel:
    view = DirectView(SECOND, OFFERED, SERVER, in_use)
    want = without_daemon(view, replace(GRANT, direct=OFFERED), frozenset(networks(["100.64.0.0/13"])))
    check(want)
    return want


def test_who_leaves_has_one_device_that_goes_on_alone() -> None:
    want = left(in_use=True)
    (device,) = want.devices
    (peer,) = device.peers
    assert device.ifname == "rz-sidecar-udp" and peer.endpoint == SERVER and peer.persistent_keepalive_s == 25
    assert {str(r.dst) for r in want.routes} == {"192.168.128.2/32", "10.250.0.0/16", "fd00:30::/64"}, (
        "what the guard refused is left out"
    )


def test_nothing_is_routed_before_packets_cross() -> None:
    assert {str(r.dst) for r in left(in_use=False).routes} == {"192.168.128.2/32"}


def test_its_port_hears_the_servers_endpoint_alone() -> None:
    """Nobody corrects an endpoint that followed somebody else."""
    text = left(in_use=True).firewall
    assert text is not None
    door = text.split("chain door_51878 {")[1].split("}")[0].split("\n")
    assert [line.strip() for line in door if line.strip()] == [
        'iifname "lo" return',
        "ip saddr 10.1.0.7 return",
        'counter name "not_local" drop',
    ]


def test_a_second_stream_device_waits_behind_the_first() -> None:
    device = Device("rz-sidecar-b", PrivateKey(b"K" * 32), listen_port=51880)
    other = replace(GRANT, public_keys=(("stream", PublicKey(b"t" * 32)),))
    want = tunnel(View(GRANT, RELAY, beside=BesideView(device, other, None)))
    first, second = want.devices
    assert {p.allowed_ips for p in first.peers} == {p.allowed_ips for p in second.peers}
    metrics = {(r.ifname, r.metric) for r in want.routes if str(r.dst) == "10.250.0.0/16"}
    assert metrics == {("rz-sidecar", 20), ("rz-sidecar-b", 220)}
