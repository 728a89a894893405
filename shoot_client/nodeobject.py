"""What a Kubernetes Node object says about this node: its addresses and its pod ranges. Pure.

The object is written by kubelet, cloud controller and whoever else may; it is input like any other. What cannot be a node's
is left out here and named; what may be carried is for the seed server to judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from agent.messages import Offer
from agent.model import IPAddress, IPNetwork, networks

#: A node has one of each address family; more are a mistake or mischief.
ADDRESSES_MAX = 16
POD_CIDRS_MAX = 16
#: No node's pods fill more than this (Kubernetes gives a /24 or a /64 unless told otherwise).
POD_CIDR_MIN_LENGTH = {4: 8, 6: 32}
_TEXT_MAX = 80


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """`left_out` says in words what of the object is not used, and why."""

    offer: Offer
    left_out: tuple[str, ...] = ()


def read(node: Mapping[str, Any]) -> NodeFacts:
    """From the object as the API sends it. Never raises: whatever is wrong is left out."""
    left_out: list[str] = []
    addresses = tuple(dict.fromkeys(_addresses(node, left_out)))
    pod_cidrs = tuple(dict.fromkeys(_pod_cidrs(node, left_out)))
    for what, found, most in (("addresses", addresses, ADDRESSES_MAX), ("pod ranges", pod_cidrs, POD_CIDRS_MAX)):
        if len(found) > most:
            left_out.append(f"{len(found) - most} of {len(found)} {what}: a node has at most {most}")
    hosts = networks(f"{a}/{a.max_prefixlen}" for a in addresses[:ADDRESSES_MAX])
    return NodeFacts(Offer(hosts, pod_cidrs[:POD_CIDRS_MAX]), tuple(left_out))


def _addresses(node: Mapping[str, Any], left_out: list[str]) -> Iterator[IPAddress]:
    """Only those of type InternalIP: names are no addresses, and an ExternalIP is not the node's own behind a NAT."""
    for entry in _list(node, "status", "addresses"):
        if not isinstance(entry, dict) or entry.get("type") != "InternalIP":
            continue
        text = entry.get("address")
        try:
            if not isinstance(text, str) or "%" in text:
                raise ValueError
            address = ip_address(text)
        except ValueError:
            left_out.append(f"address {_shown(text)}: not an IP address")
            continue
        if reason := _no_nodes(address):
            left_out.append(f"address {address}: {reason}")
        else:
            yield address


def _no_nodes(address: IPAddress) -> str:
    if isinstance(address, IPv6Address) and (mapped := address.ipv4_mapped) is not None:
        return f"{mapped} written as IPv6"
    kinds = (
        (address.is_loopback, "loopback"),
        (address.is_unspecified, "no address at all"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "multicast"),
        (isinstance(address, IPv4Address) and (address.is_reserved or int(address) >> 24 == 0), "reserved"),
    )
    return next((word for is_so, word in kinds if is_so), "")


def _pod_cidrs(node: Mapping[str, Any], left_out: list[str]) -> Iterator[IPNetwork]:
    listed = _list(node, "spec", "podCIDRs")
    if not listed and (single := _within(node, "spec").get("podCIDR")):
        listed = [single]
    for text in listed:
        try:
            if not isinstance(text, str):
                raise ValueError
            (prefix,) = networks([text])
        except ValueError:
            left_out.append(f"pod range {_shown(text)}: not a network")
            continue
        if prefix.prefixlen < POD_CIDR_MIN_LENGTH[prefix.version]:
            left_out.append(f"pod range {prefix}: too large for one node")
        elif reason := _no_nodes(prefix.network_address):
            left_out.append(f"pod range {prefix}: {reason}")
        else:
            yield prefix


def _within(node: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = node.get(field)
    return value if isinstance(value, dict) else {}


def _list(node: Mapping[str, Any], outer: str, inner: str) -> list[Any]:
    value = _within(node, outer).get(inner)
    return value if isinstance(value, list) else []


def _shown(value: Any) -> str:
    """As text that may stand in a log: short and printable."""
    return "".join(c if c.isprintable() else "?" for c in repr(value)[:_TEXT_MAX])
