"""Two devices that lead to the same addresses: a packet may come in by the one while answers leave by the other.

A host with strict reverse path filtering (RFC 3704 section 2.2) drops such a packet; the loose mode of our own devices lets it pass.
What may come out of the tunnel at all is for agent.firewall to say.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from agent import sysctl

_KEY = "net.ipv4.conf.{}.rp_filter"
_STRICT, _LOOSE = "1", "2"


def is_strict() -> bool:
    """Whether this host would drop them. The higher value of "all" and the device's own counts (ip-sysctl)."""
    return max(sysctl.read(_KEY.format(name)) or "0" for name in ("all", "default")) == _STRICT


def obstacle() -> str:
    """Why two devices cannot be had here, empty when they can."""
    if is_strict() and not os.access(sysctl.path_of(_KEY.format("default")), os.W_OK):
        return (
            f"{_KEY.format('all')} is {_STRICT} here (strict reverse path filtering), and /proc/sys cannot be written: set it to {_LOOSE} on "
            "the host, or for the pod"
        )
    return ""


def loose(ifnames: Iterable[str]) -> frozenset[tuple[str, str]]:
    """The sysctls that it takes."""
    return frozenset((_KEY.format(name.replace(".", "/")), _LOOSE) for name in ifnames)
