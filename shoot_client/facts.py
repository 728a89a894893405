"""What this node could carry: from settings, from a file that is read again when it changes, and from its Node object."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from agent.errors import ConfigError
from agent.messages import Offer
from agent.model import IPAddress, IPNetwork, networks

_KEYS = frozenset({"node_addresses", "pod_cidrs", "service_cidrs"})


def offer(
    node_addresses: tuple[IPAddress, ...],
    pod_cidrs: tuple[IPNetwork, ...],
    service_cidrs: tuple[IPNetwork, ...],
    node_cidrs: tuple[IPNetwork, ...] = (),
) -> Offer:
    """Addresses become host prefixes; `node_cidrs` are ranges of nodes without a client that this node could reach."""
    return Offer(networks(f"{a}/{a.max_prefixlen}" for a in node_addresses) + node_cidrs, pod_cidrs, service_cidrs)


def merge(*offers: Offer) -> Offer:
    """Everything that is in any of them, in order, nothing twice."""
    return Offer(
        tuple(dict.fromkeys(p for offer in offers for p in offer.nodes)),
        tuple(dict.fromkeys(p for offer in offers for p in offer.pods)),
        tuple(dict.fromkeys(p for offer in offers for p in offer.services)),
    )


def own_addresses(offer: Offer) -> tuple[IPAddress, ...]:
    """The addresses of this node itself; larger node prefixes lie behind it."""
    return tuple(p.network_address for p in offer.nodes if p.prefixlen == p.max_prefixlen)


def read_file(path: Path) -> Offer:
    """An offer from a TOML file with the keys node_addresses, pod_cidrs and service_cidrs, each a list of text.

    Raises ConfigError that names the file and every problem in it.
    """
    try:
        data = tomllib.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(f"facts file {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"facts file {path}: not TOML: {exc}") from exc
    problems = [
        f"facts file {path}: unknown key {key!r}; known are {', '.join(sorted(_KEYS))}" for key in data.keys() - _KEYS
    ]
    found = {key: _prefixes(path, key, data.get(key, []), problems) for key in sorted(_KEYS)}
    hosts = found["node_addresses"]
    problems += [
        f"facts file {path}: node_addresses: {p} is not one address" for p in hosts if p.prefixlen != p.max_prefixlen
    ]
    if problems:
        raise ConfigError(*problems)
    return Offer(found["node_addresses"], found["pod_cidrs"], found["service_cidrs"])


def _prefixes(path: Path, key: str, value: Any, problems: list[str]) -> tuple[IPNetwork, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        problems.append(f"facts file {path}: {key} is not a list of text")
        return ()
    out: list[IPNetwork] = []
    for item in value:
        try:
            out += networks([item])
        except ValueError as exc:
            problems.append(f"facts file {path}: {key}: {exc}")
    return tuple(out)
