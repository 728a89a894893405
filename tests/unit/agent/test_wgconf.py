"""The wg-quick export: complete, stable, quick, and without a key that is secret."""

from __future__ import annotations

import io
import sys
import time
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from wgconfig import WGConfig

from agent import wgconf
from agent.errors import Unsupported
from agent.model import DeviceState, Endpoint, LinkState, Peer, PresharedKey, PrivateKey, PublicKey

PRIVATE = PrivateKey(bytes(range(32)))
SHARED = PresharedKey(bytes(range(32, 64)))
ONE, TWO = PublicKey(b"\x01" * 32), PublicKey(b"\x02" * 32)
STATE = DeviceState(
    private_key=PRIVATE,
    listen_port=51820,
    fwmark=0x52,
    peers=frozenset(
        {
            Peer(TWO),
            Peer(
                ONE,
                allowed_ips=frozenset(map(ip_network, ("10.0.0.0/8", "9.0.0.0/8", "2001:db8::/64"))),
                endpoint=Endpoint(ip_address("2001:db8::1"), 7),
                preshared_key=SHARED,
                persistent_keepalive_s=25,
            ),
        }
    ),
)
LINK = LinkState(1420, True, "rhizome", frozenset({ip_interface("fd00::1/96"), ip_interface("192.168.128.1/17")}))

TEXT = f"""\
[Interface]
# PrivateKey: in the device (never exported)
Address = 192.168.128.1/17, fd00::1/96
MTU = 1420
ListenPort = 51820
FwMark = 0x52

[Peer]
PublicKey = {ONE}
AllowedIPs = 9.0.0.0/8, 10.0.0.0/8, 2001:db8::/64
Endpoint = [2001:db8::1]:7
PersistentKeepalive = 25
# PresharedKey: in the device (never exported)

[Peer]
PublicKey = {TWO}
"""


def test_the_text() -> None:
    assert wgconf.export(STATE, LINK) == TEXT


def test_wgconfig_reads_it_back() -> None:
    config = WGConfig()
    config.read_from_fileobj(io.StringIO(wgconf.export(STATE)))
    assert config.get_interface() == {"ListenPort": 51820, "FwMark": "0x52"}
    assert config.get_peers() == [str(ONE), str(TWO)]
    assert config.get_peer(str(ONE))["PersistentKeepalive"] == 25


def test_secrets_stay_in_the_device() -> None:
    text = wgconf.export(STATE, LINK)
    for key in (PRIVATE, SHARED):
        assert key.reveal() not in text and key.raw.hex() not in text


def test_a_thousand_peers_take_no_time() -> None:
    peers = frozenset(
        Peer(PublicKey(number.to_bytes(32, "big")), frozenset({ip_network(number << 8 | 0x0A000000)}))
        for number in range(1000)
    )
    began = time.perf_counter()
    text = wgconf.export(DeviceState(None, 0, 0, peers))
    assert text.count("[Peer]") == 1000
    assert time.perf_counter() - began < 2  # adding peer by peer to one WGConfig takes a minute


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wgconfig", None)
    with pytest.raises(Unsupported, match=r"pip install 'rhizome\[wgconf\]'"):
        wgconf.export(STATE)
