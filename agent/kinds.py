"""Kinds of setting: how a text becomes a value, which values there are, and how a value is written again.

A kind's `parse` raises ValueError with the rule that the text breaks, never with the text itself: the caller decides
whether the text may be shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from agent.identity import dns_label, dns_name
from agent.model import IFNAME_MAX, IPAddress, IPNetwork, networks

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class Hidden(ValueError):
    """A rule is broken by something that may be a secret: the text must not be repeated."""


def looks_secret(text: str) -> bool:
    """Whether the text is, or holds, PEM or 32 bytes of base64: then it may be a key and must not be shown."""
    return "-----BEGIN" in text or re.search(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=(?!=)", text) is not None


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """`name` is the placeholder in `--help`; `rule` says in words what is accepted; `example` is an accepted text.

    `toml` are the types that a TOML file may use. `separator` splits a list of this kind in one environment variable.
    """

    name: str
    rule: str
    example: str
    parse: Callable[[str], T]
    toml: tuple[type, ...] = (str,)
    show: Callable[[T], Any] = str
    separator: str = ","


class HostPort(NamedTuple):
    """A host (name or address, no brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Namespaced(NamedTuple):
    """A Kubernetes object, or several under one name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def _same(value: Any) -> Any:
    return value


def integer(low: int, high: int, name: str = "N") -> Kind[int]:
    """Whole numbers from `low` to `high`, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
            raise ValueError("not a whole number")
        if not low <= int(text) <= high:
            raise ValueError(f"not in {low}..{high}")
        return int(text)

    return Kind(name, f"{low}..{high}", str(max(low, min(high, 1))), parse, (int,), _same)


def number(low: float, high: float, name: str = "N") -> Kind[float]:
    """Decimal numbers from `low` to `high`, both included."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text, re.ASCII):
            raise ValueError("not a number")
        if not low <= float(text) <= high:
            raise ValueError(f"not in {low:g}..{high:g}")
        return float(text)

    return Kind(name, f"{low:g}..{high:g}", f"{low:g}", parse, (int, float), _same)


def choice(values: type[E]) -> Kind[E]:
    """One of an enum's values."""
    words = [str(member.value) for member in values]
    rule = f"{', '.join(words[:-1])} or {words[-1]}"

    def parse(text: str) -> E:
        try:
            return values(text)
        except ValueError:
            raise ValueError(f"not {rule}") from None

    return Kind("|".join(words), rule, words[0], parse, show=lambda member: str(member.value))


def _text(text: str) -> str:
    if not text.isprintable():
        raise Hidden("has characters that cannot be printed")
    return text


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("not true or false")
    return text == "true"


def _cidr(text: str) -> IPNetwork:
    try:
        return networks([text])[0]
    except ValueError as exc:
        if "host bits" in str(exc):
            raise ValueError("has host bits set: write the network's first address") from None
        raise ValueError("not a network such as 10.250.0.0/16 or 2001:db8::/64") from None


def _address(text: str) -> IPAddress:
    try:
        if "%" not in text:
            return ip_address(text)
    except ValueError:
        pass
    raise ValueError("not an IP address")


_PORT = integer(1, 65535, "PORT")
_ANY_PORT = integer(0, 65535, "PORT")


def _split(text: str, port: Kind[int]) -> HostPort:
    host, colon, digits = text.rpartition(":")
    if not colon:
        raise ValueError("has no port: write host:port")
    if host.startswith("[") and host.endswith("]"):
        if _address(host[1:-1]).version != 6:
            raise ValueError("brackets are for IPv6 addresses")
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address with a port needs brackets: [2001:db8::1]:443")
    try:
        return HostPort(host, port.parse(digits))
    except ValueError as exc:
        raise ValueError(f"port: {exc}") from None


def _host(host: str) -> None:
    """A name that ends in digits is an address that somebody mistyped (WHATWG URL, "ends in a number")."""
    if re.fullmatch(r"[0-9.]+", host) or ":" in host:
        _address(host)
    else:
        dns_name(host.lower())


def _listen(text: str) -> HostPort:
    address = _split(text, _ANY_PORT)
    _address(address.host)
    return address


def _target(text: str) -> HostPort:
    target = _split(text, _PORT)
    _host(target.host)
    return target


def _server_name(text: str) -> str:
    _host(text)
    return text


def _proxy(text: str) -> HostPort:
    if "@" in text:
        raise Hidden("has credentials in it: put user:password into a file and name it in proxy_credentials_file")
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http":
        raise ValueError("only http:// proxies are spoken to (the tunnel inside is TLS from end to end)")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("a proxy is only a host and a port")
    return _target(parts.netloc)


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.1, token
_HEADER_VALUE = re.compile(r"[!-~]([ \t!-~]*[!-~])?")  # RFC 9110 section 5.5 without obs-text
_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie")
_OUR_HEADERS = ("host", "content-length", "transfer-encoding", "connection")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if name.lower() in _SECRET_HEADERS:
        raise Hidden("carries a secret: put user:password into a file and name it in proxy_credentials_file")
    if not colon or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
        raise Hidden("not a header such as `X-Gardener-Destination: outbound|1194||vpn.shoot--a.svc.cluster.local`")
    if name.lower() in _OUR_HEADERS:
        raise ValueError(f"{name} is written by the tunnel itself")
    return name, value


def _ifname(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text, re.ASCII) or text in (".", "..") or len(text) > IFNAME_MAX:
        raise ValueError(f"an interface name has 1 to {IFNAME_MAX} letters, digits, '-', '_' and '.'")
    return text


def _path(text: str) -> Path:
    if "\0" in text or "\n" in text:
        raise Hidden("not a path")
    return Path(text)


def _secret_path(text: str) -> Path:
    if ":" in text or "\n" in text:
        raise Hidden("wants the path of a file that holds the secret, not the secret itself (which is not shown here)")
    return _path(text)


def _destination(text: str) -> str:
    """Written as it is compared: a network in its one spelling, a name in lower case."""
    if re.fullmatch(r"[0-9a-fA-F:.]+(/[0-9]+)?", text) and not re.fullmatch(r"[a-fA-F.]+", text):
        return str(_cidr(text))
    dns_name(text.lower().removeprefix("."))
    return text.lower()


def _mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("not three octal digits such as 0660")
    return int(text, 8)


def _owner(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?", text, re.ASCII):
        raise ValueError("not a user, or user:group, by names or numbers")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise Hidden("has credentials in it")
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or not text.isascii():
        raise ValueError("not an https URL without a query, such as https://kubernetes.default.svc")
    _host(parts.hostname)
    return text


def _namespaced(text: str) -> Namespaced:
    namespace, slash, name = text.partition("/")
    if not slash:
        raise ValueError("has no namespace: write NAMESPACE/NAME")
    return Namespaced(dns_label(namespace), dns_label(name))


TEXT = Kind("TEXT", "text", "text", _text)
URL = Kind("URL", "an https URL", "https://issuer.example", _url)
BOOL = Kind("true|false", "true or false", "true", _boolean, (bool,), _same)
PORT = _PORT
CIDR = Kind("CIDR", "a network such as 10.250.0.0/16", "10.250.0.0/16", _cidr)
ADDRESS = Kind("ADDRESS", "an IP address", "10.250.0.7", _address)
DESTINATION = Kind("CIDR|NAME", "a network, a DNS name, or .name for all below it", "10.243.0.10/32", _destination)
MODE = Kind("MODE", "octal permission bits", "0660", _mode, show=lambda mode: f"{mode:04o}")
OWNER = Kind("USER[:GROUP]", "user and group, names or numbers", "65532:65532", _owner)
LISTEN = Kind("ADDRESS:PORT", "address and port, such as [::]:8443", "127.0.0.1:8443", _listen)
TARGET = Kind("HOST:PORT", "host and port, such as vpn.example:8443", "vpn.example:8443", _target)
SERVER_NAME = Kind("NAME", "a DNS name or IP address", "vpn.example", _server_name)
PROXY = Kind("[http://]HOST:PORT", "host and port, such as http://proxy.example:3128", "proxy.example:3128", _proxy)
HEADER: Kind[tuple[str, str]] = Kind(
    "'NAME: VALUE'",
    "a header such as X-Destination: vpn",
    "X-Destination: vpn",
    _header,
    show=": ".join,
    separator="\n",
)
IFNAME = Kind("IFNAME", f"at most {IFNAME_MAX} characters", "rz0", _ifname)
LABEL = Kind("LABEL", "a DNS label", "shoot--garden--a", dns_label)
NAME = Kind("NAME", "a DNS name in lower case", "node-1.example", dns_name)
NAMESPACED = Kind("NAMESPACE/NAME", "namespace and name, both DNS labels", "rhizome-ipam/tunnels", _namespaced)
PATH = Kind("PATH", "a path", "/etc/rhizome/file", _path)
SECRET_PATH = Kind("PATH", "the path of a file with a secret in it", "/etc/rhizome/tls.key", _secret_path)
