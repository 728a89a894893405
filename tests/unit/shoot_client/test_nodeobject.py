"""What of a Node object is believed."""

from __future__ import annotations

from typing import Any

import pytest

from agent.messages import Offer
from agent.model import networks
from shoot_client.nodeobject import ADDRESSES_MAX, NodeFacts, read


def node(addresses: list[Any], **spec: Any) -> dict[str, Any]:
    listed = [{"type": "InternalIP", "address": a} if isinstance(a, str) else a for a in addresses]
    return {"metadata": {"name": "n1"}, "spec": spec, "status": {"addresses": listed}}


def test_internal_addresses_and_pod_ranges_of_both_families() -> None:
    found = read(
        node(
            [
                "10.250.0.7",
                "fd00:250::7",
                {"type": "Hostname", "address": "n1.example"},
                {"type": "ExternalIP", "address": "203.0.113.9"},
            ],
            podCIDR="100.96.1.0/24",
            podCIDRs=["100.96.1.0/24", "fd00:96:1::/64"],
        )
    )
    assert found == NodeFacts(
        Offer(networks(["10.250.0.7/32", "fd00:250::7/128"]), networks(["100.96.1.0/24", "fd00:96:1::/64"]))
    )


def test_an_old_object_has_one_pod_range_only() -> None:
    assert read(node([], podCIDR="100.96.1.0/24")).offer.pods == networks(["100.96.1.0/24"])


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "no address"),
        ("::", "no address"),
        ("0.1.2.3", "reserved"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "not an IP"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("::ffff:10.250.0.7", "written as IPv6"),
        ("n1.example", "not an IP"),
        ("10.250.0.7/16", "not an IP"),
        ("\x1b[2Jx", "not an IP"),
        ({"type": "InternalIP"}, "not an IP"),
        ({"type": "InternalIP", "address": 167772161}, "not an IP"),
    ],
)
def test_what_is_no_nodes_address_is_left_out_in_words(address: Any, word: str) -> None:
    found = read(node([address, "10.250.0.7"]))
    assert found.offer.nodes == networks(["10.250.0.7/32"])
    (words,) = found.left_out
    assert word in words and words.isprintable()


@pytest.mark.parametrize(
    "cidr",
    ["0.0.0.0/0", "::/0", "10.0.0.0/7", "fd00::/16", "100.96.1.5/24", "127.0.0.0/24", "fe80::/64", "x" * 500, 7, None],
)
def test_what_is_no_nodes_pod_range_is_left_out_in_words(cidr: Any) -> None:
    found = read(node([], podCIDRs=[cidr, "100.96.1.0/24"]))
    assert found.offer.pods == networks(["100.96.1.0/24"])
    assert len(found.left_out) == 1 and len(found.left_out[0]) < 150


@pytest.mark.parametrize(
    "whole",
    [{}, {"spec": None, "status": []}, {"status": {"addresses": "x"}, "spec": {"podCIDRs": {}}}, node([7, None])],
)
def test_an_object_of_another_shape_says_nothing(whole: dict[str, Any]) -> None:
    assert read(whole).offer == Offer()


def test_a_crowd_of_addresses_is_cut() -> None:
    found = read(node([f"10.0.{n}.1" for n in range(100)]))
    assert len(found.offer.nodes) == ADDRESSES_MAX and "84 of 100 addresses" in found.left_out[0]
