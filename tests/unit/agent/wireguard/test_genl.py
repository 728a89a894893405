"""The netlink codec: chunks that fit, dumps that were split in the middle of a peer, and bytes that no kernel sends."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host import RemoveAllowedIPs, RemovePeer, SetDevice, SetPeer, WireGuardStep
from agent.model import DeviceState, Endpoint, IPNetwork, Peer, PresharedKey, PrivateKey, PublicKey
from agent.nlmsg import attribute
from agent.wireguard import genl

ONE, TWO = PublicKey(b"\1" * 32), PublicKey(b"\2" * 32)
THROWAWAY = b"\xee" * 32


def encode(steps: Sequence[WireGuardStep]) -> list[bytes]:
    return list(genl.set_requests(steps, throwaway_key=lambda: THROWAWAY, scope_index={"eth7": 7}.__getitem__))


def decode(messages: Sequence[bytes], scope_name: Callable[[int], str] = {7: "eth7"}.__getitem__) -> DeviceState:
    return genl.decode(messages, scope_name)


# WGDEVICE_A_PEERS, WGPEER_A_PUBLIC_KEY, WGPEER_A_FLAGS, WGPEER_A_ALLOWEDIPS of linux/wireguard.h
PEERS, PUBLIC_KEY, FLAGS, ALLOWED_IPS = 8, 1, 3, 9


def peers_of(request: bytes) -> list[dict[int, bytes]]:
    found = dict(genl.entries(request))
    return [dict(genl.entries(peer)) for _, peer in genl.entries(found.get(PEERS, b""))]


def test_an_allowed_ip_looks_as_linux_wireguard_h_says() -> None:
    (request,) = encode([SetPeer("wg0", ONE, frozenset({IPv4Network("10.1.0.0/16")}))])
    (peer,) = peers_of(request)
    assert peer[PUBLIC_KEY] == ONE.raw
    (allowed_ip,) = (dict(genl.entries(nested)) for _, nested in genl.entries(peer[ALLOWED_IPS]))
    assert allowed_ip == {1: struct.pack("=H", 2), 2: bytes([10, 1, 0, 0]), 3: bytes([16])}


def test_a_scope_id_is_in_host_byte_order_and_the_port_is_not() -> None:
    raw = genl.sockaddr(Endpoint(IPv6Address("fe80::5%eth7"), 51820), {"eth7": 7}.__getitem__)
    assert raw == struct.pack("=H", 10) + struct.pack("!HI", 51820, 0) + IPv6Address("fe80::5").packed + struct.pack(
        "=I", 7
    )
    assert genl.sockaddr(Endpoint(IPv4Address("192.0.2.1"), 1), int)[2:8] == bytes([0, 1, 192, 0, 2, 1])
    assert len(genl.sockaddr(Endpoint(IPv4Address("192.0.2.1"), 1), int)) == 16


networks = st.one_of(
    st.builds(lambda n, p: IPv4Network((n >> (32 - p) << (32 - p), p)), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(
        lambda n, p: IPv6Network((n >> (128 - p) << (128 - p), p)), st.integers(0, 2**128 - 1), st.integers(0, 128)
    ),
)
endpoints = st.builds(
    Endpoint,
    st.one_of(
        st.ip_addresses(v=4),
        st.ip_addresses(v=6),
        st.just(IPv6Address("fe80::5%eth7")),
    ),
    st.integers(0, 65535),
)
peers = st.builds(
    Peer,
    st.binary(min_size=32, max_size=32).map(PublicKey),
    st.frozensets(networks, max_size=5),
    st.none() | endpoints,
    st.none() | st.binary(min_size=32, max_size=32).filter(any).map(PresharedKey),
    st.integers(0, 65535),
)


@given(
    st.lists(peers, max_size=5, unique_by=lambda peer: peer.public_key),
    st.binary(min_size=32, max_size=32).map(PrivateKey),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
)
def test_what_is_set_is_what_is_read(wanted: list[Peer], key: PrivateKey, port: int, mark: int) -> None:
    steps: list[WireGuardStep] = [SetDevice("wg0", key, port, mark)]
    steps += [
        SetPeer("wg0", p.public_key, p.allowed_ips, p.endpoint, p.preshared_key, p.persistent_keepalive_s)
        for p in wanted
    ]
    state = decode(encode(steps))
    assert (state.private_key, state.listen_port, state.fwmark) == (key, port, mark)
    assert state.peers == frozenset(wanted)
    assert [status.public_key for status in state.statuses] == sorted(peer.public_key for peer in wanted)


def _many(count: int, version: int) -> frozenset[IPNetwork]:
    if version == 4:
        return frozenset(IPv4Network((number << 8, 24)) for number in range(count))
    return frozenset(IPv6Network((number << 64, 64)) for number in range(count))


@pytest.mark.parametrize("version", [4, 6])
def test_no_request_is_larger_than_the_kernel_takes_and_none_is_nearly_empty(version: int) -> None:
    allowed = _many(10_000, version)
    requests = encode([SetPeer("wg0", ONE, allowed, None, PresharedKey(b"p" * 32), 25), SetPeer("wg0", TWO)])
    sizes = [len(dict(genl.entries(request))[PEERS]) for request in requests]
    assert max(sizes) <= genl.MAX_PEERS_BYTES
    assert len(requests) == -(-10_000 * (28 if version == 4 else 40) // genl.MAX_PEERS_BYTES)
    assert decode(requests).peers == {Peer(ONE, allowed, None, PresharedKey(b"p" * 32), 25), Peer(TWO)}


def test_a_thousand_peers_take_a_handful_of_requests() -> None:
    steps = [SetPeer("wg0", PublicKey(number.to_bytes(32, "big")), _many(2, 4)) for number in range(1, 1001)]
    assert len(encode(steps)) == 2


@pytest.mark.parametrize("count", [1, 3_000])
def test_allowed_ips_are_removed_by_a_peer_that_lives_for_one_request(count: int) -> None:
    taken: set[bytes] = set()
    for request in encode([RemoveAllowedIPs("wg0", ONE, _many(count, 4))]):
        assert len(dict(genl.entries(request))[PEERS]) <= genl.MAX_PEERS_BYTES
        present = set()
        for peer in peers_of(request):
            assert peer[PUBLIC_KEY] == THROWAWAY
            if peer.get(FLAGS) == struct.pack("=I", 1):
                present.discard(peer[PUBLIC_KEY])
            else:
                present.add(peer[PUBLIC_KEY])
                taken |= {nested for _, nested in genl.entries(peer[ALLOWED_IPS])}
        assert not present
    assert len(taken) == count


def test_a_device_step_waits_for_the_peers_before_it() -> None:
    requests = encode([SetPeer("wg0", ONE), SetDevice("wg0", listen_port=5), RemovePeer("wg0", ONE)])
    assert [sorted(dict(genl.entries(request))) for request in requests] == [[2, PEERS], [2, 6], [2, PEERS]]


def test_nothing_to_do_is_no_request() -> None:
    assert encode([]) == []
    assert encode([RemoveAllowedIPs("wg0", ONE, frozenset())]) == []


def test_a_dump_that_was_split_in_the_middle_of_a_peer_is_put_together() -> None:
    """The kernel repeats only the public key in the message that continues a peer."""
    first = encode(
        [SetPeer("wg0", ONE, frozenset({IPv4Network("10.1.0.0/16")}), Endpoint(IPv4Address("192.0.2.1"), 5), None, 25)]
    )
    rest = encode([SetPeer("wg0", ONE, frozenset({IPv4Network("10.2.0.0/16")})), SetPeer("wg0", TWO)])
    state = decode(first + rest)
    both = frozenset({IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16")})
    assert state.peers == {Peer(ONE, both, Endpoint(IPv4Address("192.0.2.1"), 5), None, 25), Peer(TWO)}
    assert len(state.statuses) == 2


def test_handshake_and_counters_of_a_peer() -> None:
    def message(seconds: int) -> bytes:
        peer = attribute(PUBLIC_KEY, ONE.raw) + attribute(6, struct.pack("=qq", seconds, 500_000_000))
        peer += attribute(7, struct.pack("=Q", 2**40)) + attribute(8, struct.pack("=Q", 3))
        return attribute(PEERS, attribute(0, peer))

    (status,) = decode([message(1_700_000_000)]).statuses
    assert (status.latest_handshake, status.rx_bytes, status.tx_bytes) == (1_700_000_000.5, 2**40, 3)
    (status,) = decode([message(0)]).statuses
    assert status.latest_handshake is None


def test_zero_keys_are_no_keys() -> None:
    peer = attribute(PUBLIC_KEY, ONE.raw) + attribute(2, bytes(32))
    state = decode([attribute(3, bytes(32)) + attribute(PEERS, attribute(0, peer))])
    assert state.private_key is None
    assert state.peers == {Peer(ONE)}


def test_unknown_attributes_are_skipped() -> None:
    peer = attribute(PUBLIC_KEY, ONE.raw) + attribute(77, b"new")
    assert decode([attribute(99, b"new") + attribute(PEERS, attribute(0, peer))]).peers == {Peer(ONE)}


@given(st.lists(st.binary(max_size=120), max_size=3))
def test_garbage_is_a_value_error_or_nothing(messages: list[bytes]) -> None:
    try:
        genl.decode(messages, str)
    except ValueError:
        pass


@given(st.data())
def test_a_damaged_message_is_a_value_error_or_another_device(data: st.DataObject) -> None:
    peer = SetPeer("wg0", ONE, _many(3, 6), Endpoint(IPv4Address(1), 2))
    whole = b"".join(encode([SetDevice("wg0", PrivateKey(b"k" * 32)), peer]))
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:position] + data.draw(st.binary(max_size=4)) + whole[position + data.draw(st.integers(0, 4)) :]
    try:
        genl.decode([damaged], str)
    except ValueError:
        pass


def test_every_prefix_of_a_message_is_refused_or_lacks_something() -> None:
    (whole,) = encode([SetPeer("wg0", ONE, _many(2, 4), None, None, 3)])
    complete = decode([whole])
    for end in itertools.islice(range(len(whole)), 0, None, 3):
        try:
            assert decode([whole[:end]]) != complete
        except ValueError:
            pass
