"""Sidecars that set their pods up and left: who may ask for it, what keeps them in, and what ends it."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from agent.identity import Identity, Role
from agent.messages import Enroll, Facts, Offer, Refuse
from agent.model import Device, PresharedKey, PrivateKey, PublicKey
from seed_server.absent import decode, encode, heard, restore
from seed_server.access import parse
from seed_server.desired import Second, tunnel
from seed_server.policy import Policy
from seed_server.registry import Client, Once, Registry, admit, expire, precheck, stream_down, update_facts
from tests.unit.seed_server.rig import CHARTER

CP = "shoot--garden--a"
API = Identity(CP, Role.SIDECAR, "api")
KEY, PSK = PublicKey(b"a" * 32), PresharedKey(b"p" * 32)
POLICY = replace(CHARTER.policy, no_once="", silence_s=600.0)
WALL = 1_800_000_000.0
DAY = 86400.0


def asking(*paths: str, once: bool = True) -> Enroll:
    return Enroll(tuple((path, PublicKey(path.encode().ljust(32, b"."))) for path in paths), Offer(), once=once)


def refusal(who: Identity, enroll: Enroll, policy: Policy = POLICY) -> Refuse | None:
    return precheck(Registry(), policy, frozenset(), who, enroll)


def left(now: float = 0.0, lasts_s: float = DAY, policy: Policy = POLICY) -> Registry:
    """The sidecar `api` has come at `now` and left; its certificate ends after `lasts_s`."""
    enroll = Enroll((("direct", KEY),), Offer(), once=True)
    once = Once(WALL + lasts_s, now + lasts_s)
    registry = admit(
        Registry(), policy, API, enroll, (ip_address("192.168.128.8"),), PSK, 1, now, lasts_s, once
    ).registry
    return stream_down(registry, str(API), 1, now)


def test_a_shoot_client_cannot_ask_to_be_kept() -> None:
    for paths in (("stream",), ("direct",), ("stream", "direct")):
        said = refusal(Identity(CP, Role.SHOOT_CLIENT, "n1"), asking(*paths))
        assert said is not None and said.reason == "role"


def test_nor_can_it_become_one_that_left_by_its_facts() -> None:
    """Facts change what a client carries and by which path it is answered, and never what it is."""
    client = Identity(CP, Role.SHOOT_CLIENT, "n1")
    enroll = Enroll((("stream", KEY),), Offer(), path="direct")
    registry = admit(Registry(), POLICY, client, enroll, (ip_address("192.168.128.9"),), PSK, 1, 0.0).registry
    changed = update_facts(registry, POLICY, client, Facts(Offer(), "direct"))
    assert changed is not None and changed.client.once is None and changed.client.direct_key is None


@pytest.mark.parametrize("paths", [("stream",), ("stream", "direct"), ("direct", "other")])
def test_who_leaves_has_the_direct_device_alone(paths: tuple[str, ...]) -> None:
    said = refusal(API, asking(*paths))
    assert said is not None and said.reason == "key"
    assert refusal(API, asking("direct")) is None


def test_a_sidecar_that_stays_needs_the_stream() -> None:
    said = refusal(API, asking("direct", once=False))
    assert said is not None and said.reason == "key"


def test_a_server_that_cannot_keep_anybody_says_why() -> None:
    said = refusal(API, asking("direct"), replace(POLICY, no_once="set direct_secret"))
    assert said == Refuse("once", "set direct_secret")


def test_the_rules_for_sidecars_hold_for_those_who_leave() -> None:
    rules = replace(POLICY, access=(parse("api=nodes"),))
    (client,) = left(policy=rules).clients.values()
    assert client.routes == rules.nodes
    said = refusal(Identity(CP, Role.SIDECAR, "other"), asking("direct"), rules)
    assert said is not None and said.reason == "access"


def test_a_key_that_somebody_holds_is_not_given_away() -> None:
    said = precheck(
        left(),
        POLICY,
        frozenset(),
        Identity(CP, Role.SIDECAR, "b"),
        Enroll((("direct", KEY),), Offer(), once=True),
    )
    assert said is not None and said.reason == "key"


def test_it_is_on_the_direct_device_and_on_no_other() -> None:
    charter = replace(CHARTER, policy=POLICY, direct_addresses=(ip_address("192.168.128.2"),))
    device = Device("rz-seed", PrivateKey(b"k" * 32), listen_port=51820)
    second = Second(Device("rz-seed-direct", PrivateKey(b"d" * 32), listen_port=51821), lambda _: PSK)
    firewall = replace(charter.firewall, devices=frozenset({"rz-seed", "rz-seed-direct"}))
    want = tunnel(device, replace(charter, firewall=firewall), left(), {}, second=second)
    assert not want.devices[0].peers
    (peer,) = want.devices[1].peers
    assert peer.public_key == KEY and peer.allowed_ips == {ip_network("192.168.128.8/32")}
    assert any(r.dst == ip_network("192.168.128.8/32") and r.ifname == "rz-seed-direct" for r in want.routes)
    assert want.firewall is not None and "ip saddr 192.168.128.8 ct direction original" in want.firewall


def test_handshakes_keep_it_in_and_their_absence_ends_it() -> None:
    registry, now = left(), 0.0
    for number in range(20):
        now += 500.0
        registry = expire(heard(registry, POLICY, {KEY: WALL + number}, now), now)
        assert registry.clients
    registry = heard(registry, POLICY, {KEY: WALL + 19}, now + 599.0)  # the same handshake is no sign of life
    assert expire(registry, now + 599.0).clients
    ended = expire(registry, now + 600.0)
    assert not ended.clients and not ended.holders


def test_a_stepped_clock_neither_ends_nor_prolongs_it() -> None:
    registry = heard(left(), POLICY, {KEY: WALL}, 100.0)
    back = heard(registry, POLICY, {KEY: WALL - 7200}, 650.0)  # a new handshake, by a clock that was set back
    assert expire(back, 1249.0).clients and not expire(back, 1250.0).clients


def test_it_never_outlives_its_certificate() -> None:
    registry = left(lasts_s=1000.0)
    for now in (300.0, 700.0, 900.0):
        registry = heard(registry, POLICY, {KEY: WALL + now}, now)
    assert expire(registry, 999.0).clients
    assert not expire(registry, 1000.0).clients


def test_facts_of_one_that_left_change_nothing() -> None:
    assert update_facts(left(), POLICY, API, Facts(Offer(), "stream")) is None


def test_it_is_remembered_without_any_secret() -> None:
    (client,) = left().clients.values()
    text = encode([client])
    assert str(PSK.reveal()) not in text and "preshared" not in text
    (again,) = decode(text, WALL + 100.0, 5000.0)
    for name in ("identity", "public_key", "addresses", "direct_key", "path"):
        assert getattr(again, name) == getattr(client, name)
    assert again.once == Once(WALL + DAY, 5000.0 + DAY - 100.0)
    assert encode([replace(client, once=None)]) == encode([])


def remembered(lasts_s: float = DAY) -> tuple[Client, ...]:
    return decode(encode(left(lasts_s=lasts_s).clients.values()), WALL, 0.0)


def test_a_server_that_starts_anew_takes_it_back_with_the_ranges_that_it_has_now() -> None:
    rules = replace(POLICY, access=(parse("api=services"),))
    registry = restore(Registry(), rules, remembered(), 50.0)
    (client,) = registry.clients.values()
    assert client.routes == rules.services and client.expires_at == 650.0 and registry.holders[KEY] == str(API)


def test_it_is_not_taken_back_when_it_may_reach_nothing_any_more() -> None:
    for policy, found in (
        (replace(POLICY, access=(parse("other=all"),)), remembered()),
        (replace(POLICY, no_once="no direct path"), remembered()),
        (replace(POLICY, no_sidecars="cannot forward"), remembered()),
        (POLICY, remembered(lasts_s=10.0)),
    ):
        assert not restore(Registry(), policy, found, 50.0).clients


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"sidecars": [{}]},
        {"sidecars": None},
        {"sidecars": [{"identity": f"spiffe://{CP}/shoot-client/n1"}]},
    ],
)
def test_a_file_of_another_kind_is_not_believed(change: dict[str, object]) -> None:
    row = json.loads(encode(left().clients.values()))["sidecars"][0]
    body = json.loads(encode(left().clients.values())) | change
    if change.get("sidecars") and change["sidecars"] != [{}]:
        body["sidecars"] = [row | change["sidecars"][0]]  # type: ignore[index]
    with pytest.raises((ValueError, TypeError, KeyError)):
        decode(json.dumps(body), 0.0, 0.0)
