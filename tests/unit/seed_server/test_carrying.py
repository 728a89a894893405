"""Own prefixes, shared parts and health, joined."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from agent.identity import Identity, Role
from agent.model import IPNetwork, PresharedKey, PublicKey, networks
from agent.pulse import INTERVAL_S, PATIENCE_S, RELIED_ON_INTERVAL_S, STREAM_PATIENCE_S, Standing
from seed_server.assignment import parts
from seed_server.carrying import Carrying
from seed_server.registry import Client

SERVICES, NODES = networks(["100.64.0.0/13", "10.250.0.0/16"])


def client(
    name: str, own: str = "", shared: tuple[IPNetwork, ...] = (SERVICES,), lost_at: float | None = None
) -> Client:
    return Client(
        identity=Identity("cp", Role.SHOOT_CLIENT, name),
        public_key=PublicKey(name.encode().ljust(32, b".")),
        addresses=(ip_address("192.168.128.9"),),
        own=networks(own.split()),
        shared=shared,
        refused=(),
        preshared_key=PresharedKey(b"p" * 32),
        expires_at=1000.0,
        stream=1 if lost_at is None else None,
        stream_lost_at=lost_at,
    )


def key(name: str) -> str:
    return str(Identity("cp", Role.SHOOT_CLIENT, name))


def all_well(*clients: Client, ranges: tuple[IPNetwork, ...] = (SERVICES, NODES)) -> Carrying:
    carrying = Carrying(ranges)
    for one in clients:
        carrying.put(one, 0.0).answered(0.0)
    carrying.judge_all(0.0)
    return carrying


def silence(carrying: Carrying, name: str, since: float) -> list[str]:
    """Every other client answers, this one does not."""
    steps = 20
    for step in range(steps + 1):
        now = since + PATIENCE_S * step / steps
        for other, pulse in carrying.pulses.items():
            pulse.asked(now)
            if other != key(name):
                pulse.answered(now)
    return carrying.judge_all(since + PATIENCE_S + 0.01)


def test_a_silent_client_loses_its_shared_parts_and_keeps_its_own() -> None:
    carrying = all_well(client("n1", "10.250.0.7/32"), client("n2"))
    assert set(carrying.carries[key("n1")]) < {ip_network("10.250.0.7/32"), *parts(SERVICES)}
    assert silence(carrying, "n1", 10.0) == [key("n1")]
    assert carrying.carries[key("n1")] == networks(["10.250.0.7/32"])
    assert carrying.carries[key("n2")] == parts(SERVICES)
    assert carrying.tally.failovers == {"silent": 1} and carrying.tally.moves > 0


def test_who_has_shared_parts_is_asked_more_often() -> None:
    carrying = all_well(client("n1"), client("n2", shared=()))
    assert carrying.pulses[key("n1")].interval_s == RELIED_ON_INTERVAL_S
    assert carrying.pulses[key("n2")].interval_s == INTERVAL_S


def test_a_node_whose_client_is_gone_is_reached_through_one_that_offers_it() -> None:
    """Its own address then is one of a node without a client. Without such an offer it stays where it was."""
    own = "10.250.0.7/32 100.96.1.0/24"
    for offered, left in (((NODES,), ["100.96.1.0/24"]), ((), ["10.250.0.7/32", "100.96.1.0/24"])):
        carrying = all_well(client("n1", own, ()), client("n2", shared=offered))
        version = carrying.version
        carrying.put(client("n1", own, (), lost_at=10.0), 10.0)
        assert not carrying.judge_all(10.9) and carrying.version == version
        carrying.judge_all(10.0 + STREAM_PATIENCE_S)
        assert carrying.carries[key("n1")] == networks(left)
        carrying.put(client("n1", own, ()), 20.0).answered(20.0)
        carrying.judge_all(20.0)
        assert carrying.carries[key("n1")] == networks(own.split())


def test_an_own_prefix_that_is_larger_than_the_shared_part_stays() -> None:
    pods = ip_network("10.96.0.0/24")
    carrying = all_well(client("n1", "10.96.0.0/26"), client("n2", shared=(pods,)), ranges=(pods,))
    carrying.put(client("n1", "10.96.0.0/26", lost_at=10.0), 10.0)
    carrying.judge_all(12.0)
    assert carrying.carries[key("n1")] == networks(["10.96.0.0/26"])


def test_when_all_are_lost_everything_stays_and_is_back_with_their_first_answers() -> None:
    names = ("n1", "n2", "n3")
    carrying = all_well(*map(client, names))
    before = dict(carrying.carries)
    for name in names:
        carrying.put(client(name, lost_at=10.0), 10.0)
    carrying.judge_all(12.0)
    assert {pulse.standing for pulse in carrying.pulses.values()} == {Standing.LOST}
    first_lost = before[key("n1")]
    assert sum(map(len, carrying.carries.values())) == 32 and first_lost
    for second, name in enumerate(names):
        carrying.put(client(name), 13.0 + second).answered(13.0 + second)
        carrying.judge_all(13.0 + second)
    assert dict(carrying.carries) == before, "nobody is held for what happened to all"


def test_one_that_was_in_before_the_server_started_is_taken_at_its_word() -> None:
    carrying = Carrying((SERVICES,))
    carrying.reserve("expected", parts(SERVICES)[:9])
    carrying.put(client("new"), 0.0).answered(0.0)
    carrying.judge_all(0.0)
    assert carrying.carries[key("new")] == parts(SERVICES)[9:]
    assert carrying.put(client("old"), 0.0, trusted=True).standing is Standing.WELL
    carrying.release("expected")
    assert sum(map(len, carrying.carries.values())) == 32


def test_one_that_leaves_is_forgotten() -> None:
    carrying = all_well(client("n1"), client("n2"))
    carrying.drop(key("n1"))
    carrying.drop(key("n1"))
    assert dict(carrying.carries) == {key("n2"): parts(SERVICES)}
    assert carrying.owner_of(ip_address("100.64.0.1")) == key("n2") and carrying.owner_of(ip_address("8.8.8.8")) is None
