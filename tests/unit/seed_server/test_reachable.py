"""When a prefix counts as reachable."""

from collections import deque
from dataclasses import replace
from types import MappingProxyType

from agent.canary import Target
from agent.identity import Identity, Role
from agent.keys import generate_preshared_key, generate_private_key, public_key
from agent.model import IPNetwork, Peer, networks
from seed_server.reachable import UNANSWERED_MAX, Carrier, carriers
from seed_server.registry import Client, Registry

PREFIXES = networks(["10.250.0.1/32", "100.96.0.0/24"])
NODE = Identity("shoot--a", Role.SHOOT_CLIENT, "node-1")
KEY = str(NODE)
CLIENT = Client(
    identity=NODE,
    public_key=public_key(generate_private_key()),
    addresses=(networks(["192.168.128.2/32"])[0].network_address,),
    own=PREFIXES,
    shared=(),
    refused=(),
    preshared_key=generate_preshared_key(),
    expires_at=1000.0,
    stream=1,
)
NOW = 100.0


def carrier(client: Client, canary: Target | None, carried: tuple[IPNetwork, ...] = PREFIXES) -> Carrier | None:
    canaries = {"192.168.128.2": canary} if canary else {}
    return carriers(Registry(MappingProxyType({KEY: client})), {KEY: carried}, canaries, NOW).get(KEY)


def answered(age_s: float) -> Target:
    return Target(asked=9, answered=9, asked_at=deque([NOW]), answered_at=NOW - age_s)


def test_one_that_answers_is_well() -> None:
    assert carrier(CLIENT, answered(0.5)) == Carrier(PREFIXES)
    assert carrier(CLIENT, None) == Carrier(PREFIXES)
    assert carrier(CLIENT, answered(0.5), ()) is None


def test_one_that_does_not_answer_is_down_since_its_last_answer() -> None:
    assert carrier(CLIENT, answered(42.0)) == Carrier(PREFIXES, "node-1 has not answered", NOW - 42.0)


def test_a_new_client_has_a_moment_to_answer() -> None:
    assert carrier(CLIENT, Target(asked=UNANSWERED_MAX)) == Carrier(PREFIXES)
    late = carrier(CLIENT, Target(asked=UNANSWERED_MAX + 1))
    assert late is not None
    assert late.fault.startswith("node-1 has not answered yet")


def test_a_broken_stream_counts_after_a_moment() -> None:
    lost = replace(CLIENT, stream=None, stream_lost_at=NOW - 1.0)
    assert carrier(lost, answered(0.5)) == Carrier(PREFIXES)
    lost = replace(CLIENT, stream=None, stream_lost_at=NOW - 3.0)
    assert carrier(lost, answered(0.5)) == Carrier(PREFIXES, "node-1 has no stream", NOW - 3.0)


def test_what_a_restarted_server_found_counts_until_its_client_is_back() -> None:
    peer = Peer(CLIENT.public_key, frozenset(PREFIXES))
    (found,) = carriers(Registry(adopted=(peer,)), {}, {}, NOW).values()
    assert set(found.prefixes) == set(PREFIXES)
    assert found.fault == ""
    both = Registry(MappingProxyType({KEY: CLIENT}), adopted=(peer,))
    assert set(carriers(both, {KEY: PREFIXES}, {}, NOW)) == {KEY}
