"""The UAPI codec, on replies as wireguard-go writes them and on ones that it never would."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host import RemoveAllowedIPs, RemovePeer, SetDevice, SetPeer, WireGuardStep
from agent.model import DeviceState, Endpoint, IPNetwork, Peer, PeerStatus, PresharedKey, PrivateKey, PublicKey
from agent.wireguard import uapi
from agent.wireguard.uapi import UapiError

ONE, TWO = PublicKey(b"\1" * 32), PublicKey(b"\2" * 32)
PRIVATE = PrivateKey(bytes(range(32)))
NETWORK: IPNetwork = IPv4Network("10.1.0.0/16")

REPLY = f"""\
private_key={PRIVATE.raw.hex()}
listen_port=51820
fwmark=82
public_key={ONE.raw.hex()}
preshared_key={"00" * 32}
protocol_version=1
endpoint=192.0.2.1:5
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=3
rx_bytes=1099511627776
persistent_keepalive_interval=25
allowed_ip=10.1.0.0/16
allowed_ip=fd00:1::/64
public_key={TWO.raw.hex()}
preshared_key={"ab" * 32}
protocol_version=1
endpoint=[fe80::5%eth7]:51820
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
errno=0

"""


def build(steps: Sequence[WireGuardStep], removes_single: bool = True) -> list[str]:
    return [
        r.decode() for r in uapi.set_requests(steps, throwaway_key=lambda: b"\xee" * 32, removes_single=removes_single)
    ]


def test_a_reply_of_wireguard_go() -> None:
    first, second = Endpoint(IPv4Address("192.0.2.1"), 5), Endpoint(IPv6Address("fe80::5%eth7"), 51820)
    assert uapi.parse(REPLY.encode()) == DeviceState(
        PRIVATE,
        51820,
        0x52,
        frozenset(
            {
                Peer(ONE, frozenset({NETWORK, IPv6Network("fd00:1::/64")}), first, None, 25),
                Peer(TWO, frozenset(), second, PresharedKey(b"\xab" * 32), 0),
            }
        ),
        (PeerStatus(ONE, first, 1_700_000_000.5, 2**40, 3), PeerStatus(TWO, second, None, 0, 0)),
    )


def test_a_new_device_says_nothing_but_its_errno() -> None:
    assert uapi.parse(b"errno=0\n\n") == DeviceState(None, 0, 0, frozenset())


def test_steps_become_one_request() -> None:
    steps: list[WireGuardStep] = [
        SetDevice("wg0", PRIVATE, 51820, 0x52),
        RemovePeer("wg0", TWO),
        SetPeer("wg0", ONE, frozenset({NETWORK}), Endpoint(IPv6Address("2001:db8::1"), 7), PresharedKey(bytes(32)), 0),
    ]
    assert build(steps) == [
        f"set=1\nprivate_key={PRIVATE.raw.hex()}\nlisten_port=51820\nfwmark=82\n"
        f"public_key={TWO.raw.hex()}\nremove=true\n"
        f"public_key={ONE.raw.hex()}\npreshared_key={'00' * 32}\nendpoint=[2001:db8::1]:7\n"
        "persistent_keepalive_interval=0\nallowed_ip=10.1.0.0/16\n\n"
    ]


def test_a_device_step_after_peers_starts_a_new_request() -> None:
    requests = build([SetPeer("wg0", ONE), SetDevice("wg0", fwmark=1), SetPeer("wg0", TWO)])
    assert [request.split("\n")[1] for request in requests] == [f"public_key={ONE.raw.hex()}", "fwmark=1"]
    assert all(request.endswith("\n\n") and request.count("\n\n") == 1 for request in requests)


def test_single_allowed_ips_are_removed_by_name_or_by_a_throwaway_peer() -> None:
    steps = [RemoveAllowedIPs("wg0", ONE, frozenset({NETWORK}))]
    assert build(steps) == [f"set=1\npublic_key={ONE.raw.hex()}\nupdate_only=true\nallowed_ip=-10.1.0.0/16\n\n"]
    key = "ee" * 32
    assert build(steps, removes_single=False) == [
        f"set=1\npublic_key={key}\nallowed_ip=10.1.0.0/16\npublic_key={key}\nremove=true\n\n"
    ]


def test_the_feature_test_cannot_change_a_device() -> None:
    lines = uapi.feature_request(b"\xee" * 32).decode().split("\n")
    assert lines[2] == "update_only=true"
    assert not any(line.startswith(("private_key", "listen_port", "fwmark", "replace")) for line in lines)


def test_nothing_to_do_is_no_request() -> None:
    assert build([]) == []


@pytest.mark.parametrize("code", ["-98", "98"])
def test_a_refusal_has_a_positive_errno_whatever_its_sign_on_the_wire(code: str) -> None:
    for call in (uapi.check, uapi.parse):
        with pytest.raises(UapiError) as caught:
            call(f"errno={code}\n\n".encode())
        assert caught.value.errno == errno.EADDRINUSE


def test_a_set_is_answered_by_nothing_but_errno() -> None:
    uapi.check(b"errno=0\n\n")
    with pytest.raises(UapiError):
        uapi.check(REPLY.encode())


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"errno=0\n",
        b"\n\n",
        b"listen_port=1\n\n",
        b"errno=\n\n",
        b"errno=zero\n\n",
        b"errno=0\nlisten_port=1\n\n",
        b"errno=0\nerrno=0\n\n",
        b"listen_port\nerrno=0\n\n",
        b"listen_port=65536\nerrno=0\n\n",
        b"listen_port=-1\nerrno=0\n\n",
        b"listen_port=1_0\nerrno=0\n\n",
        b"fwmark=0x52\nerrno=0\n\n",
        b"private_key=00\nerrno=0\n\n",
        b"private_key=" + b"0 " * 32 + b"\nerrno=0\n\n",
        b"public_key=" + b"zz" * 32 + b"\nerrno=0\n\n",
        b"public_key=" + b"01" * 32 + b"\nallowed_ip=10.0.0.1\nerrno=0\n\n",
        b"public_key=" + b"01" * 32 + b"\nallowed_ip=10.0.0.1/8\nerrno=0\n\n",
        b"public_key=" + b"01" * 32 + b"\nallowed_ip=fe80::%lo/64\nerrno=0\n\n",
        b"public_key=" + b"01" * 32 + b"\nendpoint=example.com:1\nerrno=0\n\n",
        b"public_key=" + b"01" * 32 + b"\nendpoint=::1:1\nerrno=0\n\n",
        b"public_key=" + b"01" * 32 + b"\nrx_bytes=" + b"9" * 5000 + b"\nerrno=0\n\n",
        b"\xff=1\nerrno=0\n\n",
    ],
)
def test_what_is_not_a_reply_is_refused(reply: bytes) -> None:
    with pytest.raises(UapiError) as caught:
        uapi.parse(reply)
    assert caught.value.errno == 0


@given(st.data())
def test_no_error_quotes_a_value_of_a_damaged_reply(data: st.DataObject) -> None:
    whole = REPLY.encode()
    position = data.draw(st.integers(0, len(whole) - 3))
    damaged = whole[:position] + data.draw(st.binary(max_size=3)) + whole[position + data.draw(st.integers(0, 40)) :]
    secret = PRIVATE.raw.hex()
    try:
        state = uapi.parse(damaged)
        said = repr(state)
    except UapiError as exc:
        said = f"{exc!r} {exc.__cause__!r}"
    assert not any(secret[start : start + 8] in said for start in range(len(secret) - 8))
