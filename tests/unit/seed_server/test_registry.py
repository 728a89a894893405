"""The shoot is hostile: what a client may claim, and what happens when it claims more."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import get_args

import pytest

from agent.identity import Identity, Role
from agent.messages import Enroll, Facts, Offer, Refuse
from agent.metrics import PREFIX_REASONS
from agent.model import Peer, PresharedKey, PublicKey, networks
from seed_server.access import parse
from seed_server.adopted import all_on
from seed_server.policy import Policy, Reason
from seed_server.registry import (
    LEG_KEPT_S,
    Admitted,
    Client,
    Registry,
    admit,
    expire,
    precheck,
    stream_down,
    update_facts,
)

CP = "shoot--garden--a"
POLICY = Policy(
    control_plane=CP,
    nodes=networks(["10.250.0.0/16", "fd00:250::/64"]),
    pods=networks(["100.96.0.0/11"]),
    services=networks(["100.64.0.0/13"]),
    protected=((ip_network("10.1.0.0/16"), "the seed's pods"), (ip_network("192.168.128.0/17"), "the tunnel")),
    lifetime_s=3600.0,
)
SERVER_KEY = PublicKey(b"s" * 32)
PSK = PresharedKey(b"p" * 32)


def who(name: str, role: Role = Role.SHOOT_CLIENT, control_plane: str = CP) -> Identity:
    return Identity(control_plane, role, name)


def key(name: str) -> PublicKey:
    return PublicKey(name.encode().ljust(32, b"."))


def offer(nodes: str = "", pods: str = "", services: str = "") -> Offer:
    return Offer(networks(nodes.split()), networks(pods.split()), networks(services.split()))


def enter(
    registry: Registry, name: str, offered: Offer, *, now: float = 0.0, stream: int = 1, psk: PresharedKey = PSK
) -> Admitted:
    enroll = Enroll((("stream", key(name)),), offered)
    return admit(registry, POLICY, who(name), enroll, (ip_address("192.168.128.9"),), psk, stream, now)


def reasons(admitted: Admitted) -> dict[str, str]:
    return {str(r.prefix): r.reason for r in admitted.client.refused}


def test_what_is_declared_is_accepted() -> None:
    done = enter(Registry(), "n1", offer("10.250.0.7/32 fd00:250::7/128", "100.96.1.0/24", "100.64.0.0/13"))
    assert done.client.own == networks(["10.250.0.7/32", "fd00:250::7/128", "100.96.1.0/24"])
    assert done.client.shared == networks(["100.64.0.0/13"])
    assert done.client.refused == ()


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("0.0.0.0/0", "default-route"),
        ("::/0", "default-route"),
        ("10.1.0.0/16", "protected"),
        ("10.1.2.3/32", "protected"),
        ("10.0.0.0/8", "protected"),
        ("192.168.128.1/32", "protected"),
        ("169.254.169.254/32", "outside"),
        ("127.0.0.0/8", "outside"),
        ("8.8.8.8/32", "outside"),
        ("10.250.0.0/24", "not-a-host"),
        ("10.250.0.0/16", "not-a-host"),
        ("::ffff:10.250.0.1/128", "outside"),
    ],
)
def test_what_is_not_declared_is_refused_with_its_reason(claim: str, reason: str) -> None:
    done = enter(Registry(), "evil", offer(claim))
    assert done.client.own == () and done.client.shared == ()
    assert reasons(done) == {str(ip_network(claim)): reason}
    assert str(ip_network(claim)) in done.client.refused[0].text


def test_another_clients_prefix_is_taken_and_stays_where_it_is() -> None:
    first = enter(Registry(), "n1", offer("10.250.0.7/32", "100.96.1.0/24"))
    thief = enter(first.registry, "evil", offer("10.250.0.7/32", "100.96.1.128/25 100.96.0.0/16"))
    assert reasons(thief) == {"10.250.0.7/32": "taken", "100.96.1.128/25": "taken", "100.96.0.0/16": "taken"}
    assert "n1" in thief.client.refused[0].text
    assert thief.registry.clients[str(who("n1"))].own == networks(["10.250.0.7/32", "100.96.1.0/24"])
    assert thief.client.own == ()


@pytest.mark.parametrize(
    ("claim", "reason"), [("100.64.0.0/13", None), ("100.68.0.0/18", None), ("100.64.0.0/19", "too-small")]
)
def test_of_a_service_range_only_large_parts_can_be_offered(claim: str, reason: str | None) -> None:
    """Else thousands of small prefixes could be put on everybody's lists, and each would win over the parts."""
    done = enter(Registry(), "n1", offer(services=claim))
    assert reasons(done).get(claim) == reason
    assert done.client.shared == (() if reason else networks([claim]))


def test_nodes_of_others_may_be_carried_only_where_the_control_plane_says_so() -> None:
    whole = Enroll((("stream", key("n1")),), offer("10.250.0.0/16 10.250.0.7/32"))
    allowing = replace(POLICY, shared_nodes=True)
    done = admit(Registry(), allowing, who("n1"), whole, (), PSK, 1, 0.0)
    assert done.client.shared == networks(["10.250.0.0/16"]) and done.client.own == networks(["10.250.0.7/32"])
    done = admit(Registry(), POLICY, who("n1"), whole, (), PSK, 1, 0.0)
    assert reasons(done) == {"10.250.0.0/16": "not-a-host"} and "shared_nodes" in done.client.refused[0].text
    part = Enroll((("stream", key("n1")),), offer("10.250.0.0/17"))
    assert reasons(admit(Registry(), allowing, who("n1"), part, (), PSK, 1, 0.0)) == {"10.250.0.0/17": "not-a-host"}


def test_an_old_streams_end_does_not_touch_the_newer_stream() -> None:
    registry = enter(Registry(), "n1", offer(), stream=1).registry
    registry = enter(registry, "n1", offer(), stream=2).registry
    assert stream_down(registry, str(who("n1")), 1, 1.0).clients[str(who("n1"))].stream == 2


def test_enrolling_again_keeps_the_preshared_key_of_the_same_key_only() -> None:
    first = enter(Registry(), "n1", offer())
    again = enter(first.registry, "n1", offer(), psk=PresharedKey(b"q" * 32))
    assert again.client.preshared_key == PSK
    fresh = Enroll((("stream", key("other")),), offer())
    changed = admit(first.registry, POLICY, who("n1"), fresh, (), PresharedKey(b"q" * 32), 2, 0.0)
    assert changed.client.preshared_key == PresharedKey(b"q" * 32)
    assert dict(changed.registry.holders) == {key("other"): str(who("n1"))}, "the old key is free again"


def test_facts_of_a_stranger_are_nothing() -> None:
    assert update_facts(Registry(), POLICY, who("n1"), Facts(offer("10.250.0.7/32"))) is None
    registry = enter(Registry(), "n1", offer()).registry
    done = update_facts(registry, POLICY, who("n1"), Facts(offer("10.250.0.7/32 0.0.0.0/0")))
    assert (
        done is not None
        and done.client.own == networks(["10.250.0.7/32"])
        and reasons(done) == {"0.0.0.0/0": "default-route"}
    )


def test_metrics_know_every_reason_from_the_start() -> None:
    """Prometheus sees no increase in a series that begins with its first event."""
    assert set(PREFIX_REASONS) == set(get_args(Reason))


def test_grants_end() -> None:
    registry = enter(Registry(), "n1", offer(), now=100.0).registry
    assert expire(registry, 3699.9) is registry
    ended = expire(registry, 3700.0)
    assert not ended.clients and not ended.holders


def test_adopted_peers_are_kept_for_a_while() -> None:
    registry = Registry(adopted=(Peer(key("old")),), adopted_until=60.0)
    assert expire(registry, 59.0) is registry
    assert not expire(registry, 60.0).adopted


def reason_of(refuse: Refuse | None) -> str | None:
    return refuse.reason if refuse else None


def test_precheck_refuses_in_words() -> None:
    good = Enroll((("stream", key("n1")),), offer())

    def judged(identity: Identity, enroll: Enroll, registry: Registry | None = None) -> str | None:
        return reason_of(precheck(registry or Registry(), POLICY, frozenset({SERVER_KEY}), identity, enroll))

    assert judged(who("n1"), good) is None
    assert judged(who("n1", control_plane="shoot--garden--b"), good) == "identity"
    assert judged(Identity("shoot--garden--a", Role.SEED_SERVER), good) == "role"
    assert judged(who("n1"), Enroll((), offer(), version_min=7, version_max=9)) == "version"
    assert judged(who("n1"), Enroll((("direct", key("n1")),), offer())) == "key"
    assert judged(who("n1"), Enroll((("stream", SERVER_KEY),), offer())) == "key"
    taken = enter(Registry(), "n1", offer()).registry
    assert judged(who("n2"), good, taken) == "key"
    assert judged(who("n1"), good, taken) is None


def test_a_sidecar_carries_nothing_whatever_it_offers() -> None:
    enroll = Enroll(
        (("stream", key("api")),),
        Offer(networks(["10.250.0.2/32"]), networks(["100.96.1.0/24"]), networks(["100.64.0.0/13"])),
    )
    admitted = admit(Registry(), POLICY, who("api", Role.SIDECAR), enroll, (), PSK, 1, 0.0)
    assert admitted.client.own == admitted.client.shared == ()
    assert [refusal.reason for refusal in admitted.client.refused] == ["role"] * 3
    assert set(admitted.client.routes) == set(POLICY.ranges())
    assert admit(Registry(), POLICY, who("n1"), enroll, (), PSK, 1, 0.0).client.routes == ()


def test_a_sidecar_that_no_rule_names_is_turned_away_and_so_are_all_where_nothing_can_be_forwarded() -> None:
    enroll = Enroll((("stream", key("api")),), Offer())
    ruled = replace(POLICY, access=(parse("prometheus-*=nodes"),))
    assert reason_of(precheck(Registry(), ruled, frozenset({SERVER_KEY}), who("api", Role.SIDECAR), enroll)) == "access"
    assert (
        reason_of(precheck(Registry(), ruled, frozenset({SERVER_KEY}), who("prometheus-0", Role.SIDECAR), enroll))
        is None
    )
    assert reason_of(precheck(Registry(), ruled, frozenset({SERVER_KEY}), who("n1"), enroll)) is None
    stuck = replace(POLICY, no_sidecars="ip_forward is 0")
    assert (
        reason_of(precheck(Registry(), stuck, frozenset({SERVER_KEY}), who("api", Role.SIDECAR), enroll))
        == "forwarding"
    )


# Two devices of ours, while keys are replaced


def cross(before: Registry, device: str, name: str, stream: int, *, standby: bool = True, now: float = 0.0) -> Admitted:
    """n1 enrols on a stream to one of our devices."""
    enroll = Enroll((("stream", key(name)),), offer("10.250.0.7/32"), standby=standby)
    at = (ip_address("192.168.128.9"),)
    return admit(
        before, POLICY, who("n1"), enroll, at, PresharedKey(name.encode().ljust(32)), stream, now, device=device
    )


def both(done: Admitted) -> list[tuple[str, PublicKey, int | None]]:
    return [(leg.device, leg.public_key, leg.stream) for leg in done.client.legs]


OLD, NEW = ("a", key("old"), 1), ("b", key("new"), 2)


def test_what_is_on_standby_does_not_get_the_packets() -> None:
    first = cross(Registry(), "a", "old", 1, standby=False)
    assert both(cross(first.registry, "b", "new", 2)) == [OLD, NEW]


def test_who_says_so_is_sent_packets_by_the_new_device_and_keeps_the_old_one() -> None:
    crossing = cross(cross(Registry(), "a", "old", 1, standby=False).registry, "b", "new", 2)
    moved = update_facts(crossing.registry, POLICY, who("n1"), Facts(offer("10.250.0.7/32")), "b")
    assert moved is not None and both(moved) == [NEW, OLD]
    again = cross(moved.registry, "a", "old", 1)
    assert both(again) == [NEW, OLD], "the old one enrols again, on standby"


def test_an_old_client_that_says_nothing_of_standby_is_where_it_came_last() -> None:
    first = cross(Registry(), "a", "old", 1, standby=False)
    assert both(cross(first.registry, "b", "old", 2, standby=False)) == [("b", key("old"), 2), ("a", key("old"), 1)]


def test_who_has_nothing_else_is_not_on_standby() -> None:
    assert both(cross(Registry(), "b", "new", 2)) == [NEW]
    lost = stream_down(cross(Registry(), "a", "old", 1, standby=False).registry, str(who("n1")), 1, 5.0)
    assert both(cross(lost, "b", "new", 2)) == [NEW]


def test_a_client_has_one_key_at_each_device_however_often_it_asks() -> None:
    """It is the attack: a key for each enroll."""
    registry = cross(Registry(), "a", "old", 1, standby=False).registry
    for number in range(20):
        done = cross(registry, "b", f"new{number}", 2)
        registry = done.registry
    assert both(done) == [OLD, ("b", key("new19"), 2)]
    assert set(registry.holders) == {key("old"), key("new19")}
    assert len(registry.clients) == 1 and done.client.own == networks(["10.250.0.7/32"])


def test_nobody_takes_the_key_that_another_has_at_another_device() -> None:
    registry = cross(cross(Registry(), "a", "old", 1, standby=False).registry, "b", "new", 2).registry
    stolen = Enroll((("stream", key("new")),), Offer(), standby=True)
    refuse = precheck(registry, POLICY, frozenset({SERVER_KEY}), who("evil"), stolen)
    assert refuse is not None and "is held by" in refuse.text


def test_the_old_device_is_left_when_its_stream_has_been_gone_for_a_moment() -> None:
    moved = cross(cross(Registry(), "a", "old", 1, standby=False).registry, "b", "new", 2, standby=False)
    left = stream_down(moved.registry, str(who("n1")), 1, 10.0)
    (client,) = expire(left, 10.0 + LEG_KEPT_S - 0.1).clients.values()
    assert both(Admitted(left, client)) == [NEW, ("a", key("old"), None)]
    gone = expire(left, 10.0 + LEG_KEPT_S)
    (client,) = gone.clients.values()
    assert both(Admitted(gone, client)) == [NEW] and set(gone.holders) == {key("new")}


def test_at_the_end_everybody_is_at_the_new_device_with_the_key_that_he_has() -> None:
    come = cross(cross(Registry(), "a", "old", 1, standby=False).registry, "b", "new", 2)
    (client,) = all_on(come.registry, "b").clients.values()
    assert both(Admitted(come.registry, client)) == [NEW]
    old = cross(Registry(), "a", "old", 1, standby=False)
    (client,) = all_on(old.registry, "b").clients.values()
    assert (client.device, client.public_key) == ("b", key("old"))


def test_a_new_key_at_the_new_device_has_a_preshared_key_of_its_own() -> None:
    done = cross(cross(Registry(), "a", "old", 1, standby=False).registry, "b", "new", 2)
    assert len({leg.preshared_key.reveal() for leg in done.client.legs}) == 2
    renewed: Client = cross(done.registry, "b", "new", 3).client
    assert renewed.other is not None and done.client.other is not None
    assert renewed.other.preshared_key == done.client.other.preshared_key, "an enroll that is repeated changes nothing"
