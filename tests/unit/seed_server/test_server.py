"""The server's behaviour over the fake host: order of admission, expiry, epochs, adoption, and hostile clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.carrier.api import Close, Down, Message, Send, Up
from agent.denylist import DenyList
from agent.errors import PoolExhausted, StoreError
from agent.fakes.host import FakeHost
from agent.fakes.wireguard import FakeWireGuard
from agent.identity import Identity, Role
from agent.messages import Credential, Drain, Enroll, Facts, Grant, Offer, Refuse, encode, parse
from agent.model import networks
from tests.unit.seed_server.rig import CP, NODE, PARTS, Rig, key, make_rig, running


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    host = FakeHost()
    async with running(await make_rig(host, FakeWireGuard(host))) as rig:
        yield rig


async def test_a_client_is_in_before_it_is_told_so(rig: Rig) -> None:
    grant = await rig.joined(1, "n1", NODE)
    assert rig.allowed() == {"n1": {"192.168.128.2/32", "10.250.0.2/32", "100.96.1.0/24", *PARTS}}
    assert grant.addresses == (ip_address("192.168.128.2"),)
    assert set(grant.carries) == set(NODE.all()) and grant.refused == ()
    assert grant.preshared_key == rig.wg.devices["rz-seed"].peers[key("n1")].preshared_key
    assert dict(grant.public_keys)["stream"] == rig.server.stream.current.incarnation.public_key


async def test_a_hostile_client_changes_nothing_and_every_refusal_is_counted_and_named(rig: Rig) -> None:
    await rig.joined(1, "n1", NODE)
    before = rig.allowed()["n1"], dict(rig.host.routes), rig.host.firewall
    claims = [
        "0.0.0.0/0",
        "::/0",
        "10.1.0.0/16",
        "169.254.169.254/32",
        "10.250.0.2/32",
        "192.168.128.2/32",
        "192.168.128.1/32",
    ]
    grant = await rig.joined(2, "evil", Offer(networks(claims), networks(["100.96.1.0/25"])))
    assert grant.carries == () and {p for p, _ in grant.refused} == {*claims, "100.96.1.0/25"}
    assert (rig.allowed()["n1"], dict(rig.host.routes), rig.host.firewall) == before
    assert rig.allowed()["evil"] == {"192.168.128.3/32"}
    assert rig.server.live.refused == {"default-route": 2, "protected": 1, "outside": 3, "taken": 2}


async def test_a_refused_enroll_says_why_and_leaves_no_peer(rig: Rig) -> None:
    rig.up(1, "n1")
    rig.say(1, Enroll((("stream", key("n1")),), Offer(), version_min=9, version_max=9))
    (refuse,) = await rig.answers(1)
    assert isinstance(refuse, Refuse) and refuse.reason == "version" and "upgrade" in refuse.text
    assert not rig.wg.devices["rz-seed"].peers


async def test_an_exhausted_pool_and_a_broken_store_are_told_and_others_keep_theirs(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.joined(1, "n1")
    for failure, reason in (
        (PoolExhausted("no free address in 192.168.128.0/17"), "pool-exhausted"),
        (StoreError("disk full"), "store"),
    ):
        rig.failure = failure
        rig.up(2, "n2")
        rig.say(2, Enroll((("stream", key("n2")),), Offer()))
        (refuse,) = await rig.answers(2)
        assert isinstance(refuse, Refuse) and refuse.reason == reason and refuse.retry_after_s is not None
        rig.sent.clear()
        assert "disk full" not in refuse.text, "the shoot learns nothing of the seed's store"
    assert "disk full" in caplog.text
    assert "n1" in rig.allowed() and "n2" not in rig.allowed()


async def test_an_identity_that_is_none_or_a_message_that_breaks_the_rules_costs_the_stream(rig: Rig) -> None:
    rig.up(1, "", identity="spiffe://x")
    rig.up(2, "n2")
    rig.events.put_nowait(Message(2, "{"))
    rig.events.put_nowait(Message(99, encode(Enroll((("stream", key("n1")),), Offer()))))
    async with asyncio.timeout(2):
        while {c.stream for c in rig.sent if isinstance(c, Close)} != {1, 2}:
            await asyncio.sleep(0.005)
    assert rig.server.live.not_let_in["malformed"] == 1


async def test_facts_change_what_a_client_carries(rig: Rig) -> None:
    await rig.joined(1, "n1", NODE)
    rig.say(1, Facts(Offer(networks(["10.250.0.9/32"]))))
    grant = (await rig.answers(1, 2))[-1]
    assert isinstance(grant, Grant) and grant.carries == networks(["10.250.0.9/32"])
    await rig.server.engine.settled()
    assert rig.allowed()["n1"] == {"192.168.128.2/32", "10.250.0.9/32"}


async def test_a_lost_device_is_made_again_and_every_client_hears_the_new_epoch(rig: Rig) -> None:
    first = await rig.joined(1, "n1", NODE)
    rig.wg.kill("rz-seed")
    second = (await rig.answers(1, 2))[-1]
    assert isinstance(second, Grant)
    assert second.epoch != first.epoch and second.public_keys == first.public_keys
    await rig.server.engine.settled()
    assert "10.250.0.2/32" in rig.allowed()["n1"]
    assert rig.host.links["rz-seed"].alias.endswith(second.epoch)


async def test_shared_parts_move_when_a_stream_is_gone_and_nobody_has_to_be_told(rig: Rig) -> None:
    services = Offer(services=networks(["100.64.0.0/13"]))
    for stream, name in ((1, "n1"), (2, "n2")):
        await rig.joined(stream, name, services)
    await rig.server.engine.settled()
    assert rig.allowed()["n1"] >= PARTS, "nothing moves to a newcomer before it has shown that packets cross"
    said = len(rig.sent)
    rig.events.put_nowait(Down(1, "dead", "3 pings"))
    async with asyncio.timeout(3):
        while not rig.allowed()["n2"] >= PARTS:
            await asyncio.sleep(0.02)
    assert rig.allowed()["n1"] == {"192.168.128.2/32"}
    assert not [c for c in rig.sent[said:] if isinstance(c, Send)]
    assert rig.server.roster.carrying.tally.failovers == {"stream": 1}


async def test_a_restarted_server_adopts_everything_and_changes_nothing_on_the_host() -> None:
    host = FakeHost()
    wg = FakeWireGuard(host)
    async with running(await make_rig(host, wg)) as first:
        told = await first.joined(1, "n1", NODE)
        enroll = encode(Enroll((("stream", key("n1")),), NODE))
    before = {k: replace(p, allowed_ips=set(p.allowed_ips)) for k, p in wg.devices["rz-seed"].peers.items()}
    second = await make_rig(host, wg)
    second.addresses = dict(first.addresses)
    async with running(second):
        await second.server.engine.settled()
        assert wg.devices["rz-seed"].peers == before, "nothing is removed before the clients could enrol again"
        second.up(7, "n1", replay=(enroll,))
        (again,) = await second.answers(7)
        assert isinstance(again, Grant)
        assert (again.epoch, again.public_keys, again.preshared_key, again.addresses) == (
            told.epoch,
            told.public_keys,
            told.preshared_key,
            told.addresses,
        )
        assert wg.devices["rz-seed"].peers == before


async def test_a_restart_moves_no_shared_part_however_the_clients_come_back() -> None:
    host = FakeHost()
    wg = FakeWireGuard(host)
    async with running(await make_rig(host, wg)) as first:
        for stream, name in ((1, "n1"), (2, "n2")):
            await first.joined(stream, name, NODE if name == "n1" else Offer(services=networks(["100.64.0.0/13"])))
            first.server.roster.carrying.pulses[str(Identity(CP, Role.SHOOT_CLIENT, name))].answered(time.monotonic())
        async with asyncio.timeout(3):
            while not 0 < len(PARTS & first.allowed()["n2"]) < len(PARTS):
                await asyncio.sleep(0.02)
        before = first.allowed()
    second = await make_rig(host, wg)
    second.addresses = dict(first.addresses)
    async with running(second):
        await second.joined(9, "n2", Offer(services=networks(["100.64.0.0/13"])))
        await asyncio.sleep(0.3)
        assert second.allowed() == before, "the first one back does not take what the other is expected to carry"
        await second.joined(8, "n1", NODE)
        await asyncio.sleep(0.3)
        assert second.allowed() == before


async def test_a_stranger_does_not_get_in_by_the_key_of_another(rig: Rig) -> None:
    await rig.joined(1, "n1", NODE)
    rig.up(2, "evil")
    rig.say(2, Enroll((("stream", key("n1")),), Offer()))
    (refuse,) = await rig.answers(2)
    assert isinstance(refuse, Refuse) and refuse.reason == "key"
    assert rig.allowed()["n1"] >= {"10.250.0.2/32"}


# What proves an identity ends


async def test_a_grant_ends_with_the_credential_and_its_renewal_asks_for_a_newer_one(rig: Rig) -> None:
    async with running(rig):
        rig.up(1, "n1", lasts_s=100.0)
        enroll = Enroll((("stream", key("n1")),), Offer())
        rig.say(1, enroll)
        (grant,) = await rig.answers(1)
        assert isinstance(grant, Grant) and 90.0 < grant.lifetime_s <= 100.0
        rig.wall += 50.0
        rig.say(1, enroll)
        _, grant, drain = await rig.answers(1, 3)
        assert isinstance(grant, Grant) and 40.0 < grant.lifetime_s <= 50.0
        assert isinstance(drain, Drain) and "newer" in drain.reason


async def test_a_credential_that_lasts_is_not_asked_about(rig: Rig) -> None:
    async with running(rig):
        rig.up(1, "n1", lasts_s=86400.0)
        for _ in range(2):
            rig.say(1, Enroll((("stream", key("n1")),), Offer()))
        grants = await rig.answers(1, 2)
        assert all(isinstance(grant, Grant) and grant.lifetime_s > 3590.0 for grant in grants)


async def test_an_ended_credential_ends_its_stream_and_opens_nothing(rig: Rig) -> None:
    async with running(rig):
        rig.up(1, "n1", lasts_s=0.0)
        rig.say(1, Enroll((("stream", key("n1")),), Offer()))
        (refuse,) = await rig.answers(1)
        assert isinstance(refuse, Refuse) and refuse.reason == "credential"
        async with asyncio.timeout(5):
            while not any(isinstance(c, Close) and "has ended" in c.reason for c in rig.sent):
                await asyncio.sleep(0.01)


# Who is kept out


async def _cut(rig: Rig, stream: int, reason: str) -> Refuse:
    """The refusal that a stream got, once it is closed and the peer is gone."""
    async with asyncio.timeout(5):
        while not any(isinstance(c, Close) and c.stream == stream for c in rig.sent):
            await asyncio.sleep(0.005)
        while rig.allowed():
            await asyncio.sleep(0.005)
    said = [parse(c.text) for c in rig.sent if isinstance(c, Send) and c.stream == stream]
    refusals = [message for message in said if isinstance(message, Refuse)]
    assert refusals and refusals[-1].reason == reason
    return refusals[-1]


@pytest.mark.parametrize("by", ["identity", "key"])
async def test_a_revoked_client_is_out_at_once_and_comes_in_no_more(rig: Rig, by: str) -> None:
    async with running(rig):
        await rig.joined(1, "n1")
        who = Identity(CP, Role.SHOOT_CLIENT, "n1")
        denied = (
            DenyList(identities=frozenset({str(who)})) if by == "identity" else DenyList(keys=frozenset({key("n1")}))
        )
        rig.server.deny(denied)
        await _cut(rig, 1, "revoked")
        rig.events.put_nowait(Down(1, "closed", ""))
        rig.sent.clear()
        rig.up(2, "n1")
        rig.say(2, Enroll((("stream", key("n1")),), Offer()))
        await _cut(rig, 2, "revoked")
        rig.events.put_nowait(Down(2, "closed", ""))
        rig.server.deny(DenyList())
        await rig.joined(3, "n1")
        assert rig.allowed()


async def test_a_peer_that_was_revoked_while_no_server_ran_is_not_adopted(rig: Rig) -> None:
    async with running(rig):
        await rig.joined(1, "n1")
        await rig.joined(2, "n2")
    again = await make_rig(rig.host, rig.wg)
    again.server.deny(DenyList(identities=frozenset({str(Identity(CP, Role.SHOOT_CLIENT, "n1"))})))
    async with running(again):
        assert set(again.allowed()) == {"n1", "n2"}
        again.up(1, "n1", replay=("garbage", encode(Enroll((("stream", key("n1")),), Offer()))))
        async with asyncio.timeout(5):
            while set(again.allowed()) != {"n2"}:
                await asyncio.sleep(0.005)
        assert any(isinstance(c, Close) and c.stream == 1 for c in again.sent)


async def test_two_processes_with_one_identity_are_both_out(rig: Rig) -> None:
    async with running(rig):
        for stream, process in ((1, "real"), (2, "thief")):
            rig.up(stream, "n1")
            rig.say(stream, Enroll((("stream", key(process)),), Offer(), process=process))
            (grant,) = await rig.answers(stream)
            assert isinstance(grant, Grant)
        rig.events.put_nowait(Down(1, "replaced", ""))
        rig.up(3, "n1")
        rig.say(3, Enroll((("stream", key("real")),), Offer(), process="real"))
        refuse = await _cut(rig, 3, "fenced")
        assert "two places" in refuse.text and refuse.retry_after_s
        assert not rig.server.registry.clients
        assert rig.server.warden.fence.contested == 1


async def test_a_new_preshared_key_is_on_the_device_before_the_client_is_told(rig: Rig) -> None:
    first = await rig.joined(1, "n1", NODE)
    other = await rig.joined(2, "n2")
    carried = rig.allowed()
    name = str(Identity(CP, Role.SHOOT_CLIENT, "n1"))
    before = len(rig.sent)
    await rig.server.renew_preshared_keys([name, "nobody"])
    (told,) = [parse(c.text) for c in rig.sent[before:] if isinstance(c, Send)]
    assert isinstance(told, Grant)
    peers = rig.wg.devices["rz-seed"].peers
    assert told.preshared_key == peers[key("n1")].preshared_key != first.preshared_key
    assert peers[key("n2")].preshared_key == other.preshared_key
    assert rig.allowed() == carried and told.addresses == first.addresses


async def test_a_grant_brings_the_credential_that_its_stream_is_due(rig: Rig) -> None:
    asked: list[tuple[str, int, set[int]]] = []
    credential = Credential("eyJ.a.b", "0a" * 32)

    def renew(identity: Identity, up: Up, streams: Collection[int]) -> Credential | None:
        asked.append((identity.name, up.stream, set(streams)))
        return credential if identity.name == "n1" else None

    rig.server.live.renew = renew
    assert (await rig.joined(1, "n1")).credential == credential
    assert (await rig.joined(2, "n2")).credential is None
    assert asked == [("n1", 1, {1}), ("n2", 2, {1, 2})]
