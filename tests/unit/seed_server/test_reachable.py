"""When a prefix counts as reachable."""

from types import MappingProxyType

from agent.identity import Identity, Role
from agent.keys import generate_preshared_key, generate_private_key, public_key
from agent.model import IPNetwork, Peer, networks
from agent.pulse import Cause, Pulse, Standing
from seed_server.reachable import Carrier, carriers
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


def carrier(pulse: Pulse, carried: tuple[IPNetwork, ...] = PREFIXES) -> Carrier | None:
    return carriers(Registry(MappingProxyType({KEY: CLIENT})), {KEY: carried}, {KEY: pulse}).get(KEY)


def test_one_that_answers_is_well_and_a_new_one_has_a_moment_to_answer() -> None:
    assert carrier(Pulse(NOW, Standing.WELL)) == Carrier(PREFIXES)
    assert carrier(Pulse(NOW)) == Carrier(PREFIXES)
    assert carrier(Pulse(NOW), ()) is None


def test_one_that_does_not_answer_is_down_since_its_last_answer() -> None:
    pulse = Pulse(NOW, Standing.LOST, Cause.SILENT, answered_at=NOW - 42.0)
    assert carrier(pulse) == Carrier(PREFIXES, "node-1 has not answered", NOW - 42.0)


def test_one_that_never_answered_is_down_since_it_was_asked() -> None:
    late = carrier(Pulse(NOW, Standing.LOST, Cause.SILENT, missing_since=NOW - 6.0))
    assert late is not None
    assert late.fault.startswith("node-1 has not answered yet") and late.since == NOW - 6.0


def test_one_without_a_stream_is_down_since_that_broke() -> None:
    pulse = Pulse(NOW, Standing.LOST, Cause.STREAM, stream_lost_at=NOW - 3.0)
    assert carrier(pulse) == Carrier(PREFIXES, "node-1 has no stream", NOW - 3.0)


def test_what_a_restarted_server_found_counts_until_its_client_is_back() -> None:
    peer = Peer(CLIENT.public_key, frozenset(PREFIXES))
    (found,) = carriers(Registry(adopted=(peer,)), {}, {}).values()
    assert set(found.prefixes) == set(PREFIXES)
    assert found.fault == ""
    both = Registry(MappingProxyType({KEY: CLIENT}), {CLIENT.public_key: KEY}, adopted=(peer,))
    assert set(carriers(both, {KEY: PREFIXES}, {KEY: Pulse(NOW)})) == {KEY}


def test_a_client_that_is_back_with_another_key_is_back() -> None:
    old = Peer(public_key(generate_private_key()), frozenset((*networks(["192.168.128.2/32"]), *PREFIXES)))
    registry = Registry(MappingProxyType({KEY: CLIENT}), {CLIENT.public_key: KEY}, adopted=(old,))
    found = carriers(registry, {KEY: PREFIXES}, {KEY: Pulse(NOW, Standing.LOST, Cause.SILENT, answered_at=NOW)})
    assert set(found) == {KEY}
