"""HTTPS_PROXY and NO_PROXY, as curl and Go read them: a pure function over an environment.

    HTTPS_PROXY  [http://][user:password@]host[:port]      https_proxy wins over HTTPS_PROXY
    NO_PROXY     *, or a list of name[:port], .suffix, address[:port], CIDR      no_proxy wins over NO_PROXY

A name in NO_PROXY covers its subdomains too. Credentials are percent-decoded (RFC 3986 section 3.2.1) and never shown.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from agent.carrier.api import Proxy
from agent.errors import ConfigError

DEFAULT_PORT = 80  # of the scheme http


def proxy_from_environment(environ: Mapping[str, str], host: str, port: int) -> Proxy | None:
    """The proxy for a connection to `host:port`, None for none. Raises ConfigError for a proxy that cannot be spoken to."""
    url = _variable(environ, "https_proxy")
    if not url or bypasses(_variable(environ, "no_proxy"), host, port):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        proxy_host, proxy_port = parts.hostname, parts.port
    except ValueError as exc:
        # The text may hold a password: it is not repeated.
        raise ConfigError("HTTPS_PROXY: not a URL such as http://proxy.example:3128") from exc
    if parts.scheme != "http":
        raise ConfigError(
            f"HTTPS_PROXY: a proxy is spoken to over http://, not {parts.scheme}:// (what goes through is TLS)"
        )
    if not proxy_host:
        raise ConfigError("HTTPS_PROXY: names no host, write http://proxy.example:3128")
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(proxy_host, DEFAULT_PORT if proxy_port is None else proxy_port, credentials=credentials)


def bypasses(no_proxy: str, host: str, port: int) -> bool:
    """Whether NO_PROXY says that `host:port` is reached without a proxy."""
    host = host.lower().rstrip(".")
    return any(_covers(entry.strip().lower(), host, port) for entry in no_proxy.split(","))


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, only_port = _split_port(entry)
    if not name or only_port not in (None, port):
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = name.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    try:
        network = ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
    return address in network


def _split_port(entry: str) -> tuple[str, int | None]:
    """`name`, `name:port`, `[v6]:port`, `v6` or a CIDR: the first part without brackets, and the port."""
    name, colon, port = entry.rpartition(":")
    if colon and port.isascii() and port.isdigit() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return entry.strip("[]"), None


def _variable(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()
