"""From the registry to the hub device, and to each client's grant."""

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType

from agent.firewall import Firewall, render
from agent.identity import Identity, Role
from agent.model import Device, IPNetwork, Peer, PresharedKey, PrivateKey, PublicKey, Tunnel, networks
from agent.plan import check
from seed_server.access import parse
from seed_server.assignment import parts
from seed_server.carrying import Carrying
from seed_server.charter import Charter
from seed_server.desired import grant, tunnel
from seed_server.policy import Policy, Refusal
from seed_server.registry import Client, Leg, Registry

CHARTER = Charter(
    policy=Policy("cp", networks(["10.250.0.0/16"]), (), networks(["100.64.0.0/13"]), (), 3600.0),
    addresses=(ip_address("192.168.128.1"), ip_address("fd8f::1")),
    tunnel_networks=networks(["192.168.128.0/17", "fd8f::/96"]),
    ranges=networks(["10.250.0.0/16", "100.64.0.0/13"]),
    mtu_bytes=1420,
    persistent_keepalive_s=25,
    firewall=Firewall(frozenset({"rz-seed"}), frozenset(networks(["192.168.128.0/17"])), hubs=frozenset({"rz-seed"})),
)
DEVICE = Device("rz-seed", PrivateKey(b"k" * 32), listen_port=51820)


def client(name: str, number: int, own: str = "", shared: str = "") -> Client:
    return Client(
        identity=Identity("cp", Role.SHOOT_CLIENT, name),
        public_key=PublicKey(name.encode().ljust(32, b".")),
        addresses=(ip_address(f"192.168.128.{number}"), ip_address(f"fd8f::{number}")),
        own=networks(own.split()),
        shared=networks(shared.split()),
        refused=(Refusal(networks(["0.0.0.0/0"])[0], "default-route", "words"),),
        preshared_key=PresharedKey(b"p" * 32),
        expires_at=1000.0,
        stream=number,
    )


def registry(*clients: Client, adopted: tuple[Peer, ...] = ()) -> Registry:
    return Registry({str(c.identity): c for c in clients}, adopted=adopted, adopted_until=60.0)


def peers(reg: Registry) -> dict[PublicKey, Peer]:
    carrying = Carrying(CHARTER.policy.ranges())
    for joined in reg.clients.values():
        carrying.put(joined, 0.0)
    want = tunnel(DEVICE, CHARTER, reg, carrying.carries)
    check(want)
    return {p.public_key: p for p in want.devices[0].peers}


def test_every_declared_range_is_routed_even_when_nobody_carries_it() -> None:
    want = tunnel(DEVICE, CHARTER, Registry(), {})
    check(want)
    assert {(str(r.dst), str(r.source)) for r in want.routes} == {
        ("192.168.128.0/17", "192.168.128.1"),
        ("fd8f::/96", "fd8f::1"),
        ("10.250.0.0/16", "192.168.128.1"),
        ("100.64.0.0/13", "192.168.128.1"),
    }
    assert want.firewall == render(replace(CHARTER.firewall, local_ports=frozenset({51820})))


def test_a_client_gets_its_addresses_and_what_it_carries() -> None:
    n1 = client("n1", 2, own="10.250.0.2/32", shared="100.64.0.0/13")
    (peer,) = peers(registry(n1)).values()
    assert peer.allowed_ips == frozenset(
        networks(["192.168.128.2/32", "fd8f::2/128", "10.250.0.2/32"]) + parts(networks(["100.64.0.0/13"])[0])
    )
    assert peer.endpoint is None and peer.preshared_key == n1.preshared_key


def test_a_shared_prefix_is_one_peers_only() -> None:
    both = peers(registry(client("n1", 2, shared="100.64.0.0/13"), client("n2", 3, shared="100.64.0.0/13")))
    for part in parts(networks(["100.64.0.0/13"])[0]):
        assert sum(part in p.allowed_ips for p in both.values()) == 1


def test_an_adopted_peer_stays_until_its_client_or_another_claims_what_it_holds() -> None:
    old = Peer(
        PublicKey(b"o" * 32),
        frozenset(networks(["192.168.128.2/32", "10.250.0.2/32"])),
        preshared_key=PresharedKey(b"x" * 32),
    )
    assert peers(registry(adopted=(old,)))[old.public_key] == old
    half = peers(registry(client("n2", 9, own="10.250.0.2/32"), adopted=(old,)))
    assert half[old.public_key].allowed_ips == frozenset(networks(["192.168.128.2/32"]))
    gone = peers(registry(client("n1", 2, own="10.250.0.2/32"), adopted=(old,)))
    assert old.public_key not in gone
    same = client("n1", 2, own="10.250.0.2/32")
    known = replace(old, public_key=same.public_key)
    assert len(peers(registry(same, adopted=(known,)))) == 1


def test_a_grant_says_what_the_client_needs_and_how_long_it_lasts() -> None:
    n1 = client("n1", 2, own="10.250.0.2/32", shared="100.64.0.0/13")
    told = grant(PublicKey(b"s" * 32), "e7", CHARTER, n1, now=400.0)
    assert told.lifetime_s == 600.0 and told.epoch == "e7"
    assert told.carries == networks(["10.250.0.2/32", "100.64.0.0/13"]), "all that it may be asked to carry"
    assert told.servers == CHARTER.addresses and told.tunnel_networks == CHARTER.tunnel_networks
    assert told.refused == (("0.0.0.0/0", "words"),)
    assert grant(PublicKey(b"s" * 32), "e7", CHARTER, n1, now=4000.0).lifetime_s == 0.0


def sidecar(name: str, number: int, routes: str) -> Client:
    one = client(name, number)
    return replace(one, identity=Identity("cp", Role.SIDECAR, name), routes=networks(routes.split()))


def transits(want: Tunnel) -> dict[str, set[str]]:
    """Initiator -> what it may open connections to, as the firewall's text has it."""
    assert want.firewall is not None
    chains = {m[1]: m[2] for m in re.finditer(r"chain (\w+) \{\n(.*?)\t\}", want.firewall, re.DOTALL)}
    found = {}
    for line in chains["transit"].splitlines():
        words = line.split()
        found[words[2]] = {rule.split()[4] for rule in chains[words[-1]].splitlines() if "transit_passes" in rule}
    return found


def test_a_sidecar_opens_connections_to_its_own_ranges_and_a_client_to_none() -> None:
    reg = registry(
        client("n1", 2, own="10.250.0.2/32"),
        sidecar("api", 8, "10.250.0.0/16 100.64.0.0/13"),
        sidecar("prometheus", 9, "10.250.0.0/16"),
    )
    want = tunnel(DEVICE, CHARTER, reg, {"spiffe://cp/shoot-client/n1": networks(["10.250.0.2/32"])})
    check(want)
    all_of_it, nodes = {"10.250.0.0/16", "100.64.0.0/13"}, {"10.250.0.0/16"}
    assert transits(want) == {
        "192.168.128.8": all_of_it,
        "fd8f::8": all_of_it,
        "192.168.128.9": nodes,
        "fd8f::9": nodes,
    }
    assert want.sysctls == {("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")}
    assert not tunnel(DEVICE, CHARTER, registry(client("n1", 2)), {}).sysctls


def test_a_sidecar_that_was_in_before_a_restart_keeps_its_ranges_until_it_is_back() -> None:
    own = networks(["192.168.128.8/32", "fd8f::8/128"])
    adopted = (
        Peer(PublicKey(b"a" * 32), frozenset(own)),
        Peer(PublicKey(b"b" * 32), frozenset(networks(["192.168.128.2/32"]))),
    )
    known = {n.network_address: Identity("cp", Role.SIDECAR, "api") for n in own}
    reg = replace(registry(adopted=adopted), known=known)
    charter = replace(CHARTER, policy=replace(CHARTER.policy, access=(parse("api=services"),)))
    services = {"100.64.0.0/13"}
    assert transits(tunnel(DEVICE, charter, reg, {})) == {"192.168.128.8": services, "fd8f::8": services}
    back = replace(sidecar("api", 8, "100.64.0.0/13"), public_key=PublicKey(b"a" * 32))
    reg = replace(reg, clients={str(back.identity): back})
    assert transits(tunnel(DEVICE, charter, reg, {})) == {"192.168.128.8": services, "fd8f::8": services}


# Two devices, while keys are replaced

NEXT = Device("rz-seed-b", PrivateKey(b"K" * 32), listen_port=51822)


def both(reg: Registry, also: Mapping[str, tuple[IPNetwork, ...]] = MappingProxyType({})) -> Tunnel:
    """`also` is carried besides what each client has of its own."""
    carrying = Carrying(CHARTER.policy.ranges())
    for joined in reg.clients.values():
        carrying.put(joined, 0.0)
    carries = {key: (*prefixes, *also.get(key, ())) for key, prefixes in carrying.carries.items()}
    want = tunnel(DEVICE, CHARTER, reg, carries, successor=NEXT)
    check(want)
    return want


def crossing(number: int, *, moved: bool) -> Client:
    start = replace(client(f"n{number}", number, f"10.250.0.{number}/32"), device="rz-seed")
    there = Leg("rz-seed-b", PublicKey(b"N" * 31 + bytes([number])), PresharedKey(b"q" * 32), 0.0, 40 + number)
    return start.on(there, start.leg) if moved else replace(start, other=there)


def leads(want: Tunnel, prefix: str) -> set[tuple[str, int]]:
    return {(route.ifname, route.metric) for route in want.routes if str(route.dst) == prefix}


def test_both_devices_accept_the_same_of_a_client_that_comes_over() -> None:
    want = both(registry(crossing(7, moved=False)))
    old, new = ({p.public_key: p.allowed_ips for p in device.peers} for device in want.devices)
    assert list(old.values()) == list(new.values()) and old.keys().isdisjoint(new)
    assert want.devices[0].addresses == want.devices[1].addresses
    assert want.firewall is not None
    for word in ('iifname "rz-seed" jump from_tunnel', 'iifname "rz-seed-b" jump from_tunnel', "51820", "51822"):
        assert word in want.firewall


def test_a_route_decides_by_which_device_each_client_is_reached() -> None:
    want = both(registry(crossing(7, moved=False), crossing(8, moved=True)))
    assert leads(want, "10.250.0.0/16") == {("rz-seed", 0)} and leads(want, "10.250.0.8/32") == {("rz-seed-b", 0)}
    assert not leads(want, "10.250.0.7/32"), "with thousands of clients, a route for each would be most of the work"


def test_what_lies_in_a_part_of_somebody_else_keeps_its_own_way() -> None:
    """A node of the pods' range that has not come over yet, in a part that a client carries who has."""
    part = networks(["10.250.0.0/20"])
    carrier = crossing(8, moved=True)
    carries = {str(carrier.identity): part}
    want = both(registry(crossing(7, moved=False), carrier), carries)
    assert leads(want, "10.250.0.0/20") == {("rz-seed-b", 0)} and leads(want, "10.250.0.7/32") == {("rz-seed", 0)}


def test_the_canary_finds_a_way_by_each_of_the_two_devices() -> None:
    want = both(registry(crossing(7, moved=False)))
    assert leads(want, "192.168.128.0/17") == {("rz-seed", 0), ("rz-seed", 50), ("rz-seed-b", 51)}


def test_when_all_have_come_over_the_ranges_follow() -> None:
    """Before the old device goes: what is routed more precisely can go then without a gap."""
    want = both(registry(crossing(7, moved=True), crossing(8, moved=True)))
    assert leads(want, "10.250.0.0/16") == {("rz-seed-b", 0)}


def test_peers_found_at_start_are_reached_as_they_were() -> None:
    peer = Peer(PublicKey(b"f" * 32), frozenset(networks(["192.168.128.9/32", "10.250.0.9/32"])))
    found = replace(registry(), adopted_next=(peer,), next_routes=frozenset(peer.allowed_ips), adopted=(peer,))
    want = both(found)
    assert all(device.peers == {peer} for device in want.devices)
    assert leads(want, "10.250.0.0/16") == {("rz-seed-b", 0)} and not leads(want, "10.250.0.9/32")


def test_a_hub_has_two_ways_out_and_no_third() -> None:
    sidecar = replace(
        client("api", 9), identity=Identity("cp", Role.SIDECAR, "api"), routes=networks(["10.250.0.0/16"])
    )
    text = both(registry(sidecar)).firewall
    assert text is not None and 'oifname != "rz-seed" oifname != "rz-seed-b" counter name "denied" drop' in text
