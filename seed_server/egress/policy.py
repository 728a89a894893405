"""Which addresses may be dialled, and where. Pure: every address is judged, also the ones that a name resolved to.

The caller is trusted to speak for kube-apiserver, not to choose targets: a webhook's address, a node's, a pod's come out of
objects that the shoot's users write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, ip_network

from agent.model import IPAddress, IPNetwork
from seed_server.egress.verdict import Failure, forbidden

#: Never dialled, whatever is declared: result word, networks, what they are.
_NEVER: tuple[tuple[str, tuple[IPNetwork, ...], str], ...] = tuple(
    (result, tuple(map(ip_network, texts)), words)
    for result, texts, words in (
        ("unspecified", ("0.0.0.0/8", "::/128"), "an unspecified address"),
        ("loopback", ("127.0.0.0/8", "::1/128"), "a loopback address"),
        (
            "metadata",
            # AWS, Azure, GCP, OpenStack and others; ECS; EKS; AWS over IPv6; GCP over IPv6; Alibaba; Oracle; Azure's wire server
            (
                "169.254.169.254/32",
                "169.254.170.0/24",
                "fd00:ec2::/32",
                "fd20:ce::254/128",
                "100.100.100.200/32",
                "192.0.0.192/32",
                "168.63.129.16/32",
            ),
            "a cloud's metadata service",
        ),
        ("link-local", ("169.254.0.0/16", "fe80::/10", "fec0::/10"), "a link-local address"),
        ("multicast", ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8"), "a multicast or broadcast address"),
        (
            "embedded",
            # IPv4-mapped (RFC 4291), compatible, translated (RFC 6052, 8215, 2765), 6to4, Teredo
            ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),
            "an IPv6 address with an IPv4 address in it",
        ),
    )
)


#: RFC 5214 section 6.1: interface identifiers 0000:5efe and 0200:5efe, then an IPv4 address.
_ISATAP, _ISATAP_MASK = 0x00005EFE << 32, 0xFDFFFFFF << 32


class Way(Enum):
    """Where an address is dialled."""

    TUNNEL = "tunnel"
    SEED = "seed"


@dataclass(frozen=True, slots=True)
class Policy:
    """`refused` pairs a network with where it comes from. `direct_names` are exact, or begin with a dot for all below."""

    shoot: tuple[IPNetwork, ...]
    refused: tuple[tuple[IPNetwork, str], ...] = ()
    direct: tuple[IPNetwork, ...] = ()
    direct_names: tuple[str, ...] = ()

    def judge(self, address: IPAddress) -> Way | Failure:
        """Exceptions come before the shoot's and the seed's ranges: that is what they are for."""
        if (failure := _never(address)) is not None:
            return failure
        if _in(address, self.direct):
            return Way.SEED
        for network, origin in self.refused:
            if _in(address, (network,)):
                return forbidden("protected", f"{address} is in {network}, {origin}")
        if _in(address, self.shoot):
            return Way.TUNNEL
        return forbidden("outside", f"{address} is in none of the shoot's ranges")

    def judge_direct(self, address: IPAddress) -> Way | Failure:
        """An address that an exception's name resolved to: it is dialled in the seed, so it must not be the shoot's."""
        if (failure := _never(address)) is not None:
            return failure
        if _in(address, self.shoot):
            return forbidden("protected", f"{address} is the shoot's, and the name is an exception for the seed")
        return Way.SEED

    def is_direct(self, name: str) -> bool:
        """Whether a name is looked up and dialled in the seed."""
        return any(name.endswith(rule) if rule.startswith(".") else name == rule for rule in self.direct_names)


def _never(address: IPAddress) -> Failure | None:
    for result, networks, words in _NEVER:
        if _in(address, networks):
            return forbidden(result, f"{address} is {words}, which is never dialled")
    if isinstance(address, IPv6Address) and int(address) & _ISATAP_MASK == _ISATAP:
        return forbidden("embedded", f"{address} is an IPv6 address with an IPv4 address in it, which is never dialled")
    return None


def _in(address: IPAddress, networks: tuple[IPNetwork, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
