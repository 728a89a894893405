"""The target of a CONNECT: authority-form of RFC 9112 section 3.2.3, read strictly. Pure.

An address has one spelling here. What other resolvers take for an address too (octal, hexadecimal, short or decimal IPv4,
zone identifiers) is an error and no name: two readers that disagree about a target are how a check is walked around.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from agent.identity import NAME_MAX
from agent.model import IPAddress

AUTHORITY_MAX = NAME_MAX + len(":65535")

_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
#: Kubernetes has names with underscores nowhere, DNS has (SRV, and hosts of careless people): they are harmless here.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
#: WHATWG URL, "ends in a number": whoever sees such a last label takes the host for an IPv4 address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """`host` is an address, or a name in lower case without a final dot."""

    host: IPAddress | str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"


def parse(authority: str) -> Target:
    """Raises ValueError with the rule that is broken; the text itself is not repeated."""
    if len(authority) > AUTHORITY_MAX:
        raise ValueError(f"a target of more than {AUTHORITY_MAX} characters")
    host, colon, port = authority.rpartition(":")
    if not colon or not host:
        raise ValueError("a target is host:port")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError("a port is 1 to 65535")
    return Target(_host(host), int(port))


def _host(text: str) -> IPAddress | str:
    if text.startswith("["):
        return _ipv6(text)
    name = text.lower().removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return _ipv4(text)
    if len(name) > NAME_MAX or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError("the host is neither an address nor a DNS name (an IPv6 address stands in brackets)")
    return name


def _ipv6(text: str) -> IPv6Address:
    if not text.endswith("]"):
        raise ValueError("a bracket without its other one")
    if "%" in text:
        raise ValueError("an address with a zone means something else on every host")
    try:
        return IPv6Address(text[1:-1])
    except AddressValueError:
        raise ValueError("no IPv6 address in the brackets") from None


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ValueError("an IPv4 address is four decimal numbers without leading zeros") from None
