"""Who is at the other end: names that may appear in certificates, and the SPIFFE ID made of them.

    spiffe://<control plane>/seed-server
    spiffe://<control plane>/shoot-client/<name>
    spiffe://<control plane>/sidecar/<name>
    spiffe://<control plane>/observer/<name>

The control plane is the trust domain (SPIFFE-ID section 2.1); it is a DNS label, so that it fits a namespace and a file
name. Names of clients are node or pod names: DNS subdomains (RFC 1123 section 2.1, lower case as Kubernetes has them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

SCHEME = "spiffe://"
LABEL_MAX = 63  # RFC 1035 section 2.3.4
NAME_MAX = 253

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.ASCII)


class Role(Enum):
    """What a certificate lets its holder be."""

    SEED_SERVER = "seed-server"
    SHOOT_CLIENT = "shoot-client"
    SIDECAR = "sidecar"
    OBSERVER = "observer"  #: is known, and opens no tunnel


def dns_label(text: str) -> str:
    """The text itself when it is a DNS label in lower case. Raises ValueError with the rule it breaks."""
    if not 1 <= len(text) <= LABEL_MAX:
        raise ValueError(f"has {len(text)} characters, a DNS label has 1 to {LABEL_MAX}")
    if not _LABEL.fullmatch(text):
        raise ValueError("a DNS label has only a-z, 0-9 and '-', and starts and ends with a letter or digit")
    return text


def dns_name(text: str) -> str:
    """The text itself when it is a DNS name in lower case without a final dot. Raises ValueError."""
    if not 1 <= len(text) <= NAME_MAX:
        raise ValueError(f"has {len(text)} characters, a DNS name has 1 to {NAME_MAX}")
    for label in text.split("."):
        dns_label(label)
    return text


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """A role in a control plane. `name` is empty for the seed server, which has none."""

    control_plane: str
    role: Role
    name: str = ""

    def __post_init__(self) -> None:
        dns_label(self.control_plane)
        if self.role is Role.SEED_SERVER:
            if self.name:
                raise ValueError("a seed server has no name of its own")
        else:
            dns_name(self.name)

    def __str__(self) -> str:
        path = f"{self.role.value}/{self.name}" if self.name else self.role.value
        return f"{SCHEME}{self.control_plane}/{path}"

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """The identity in a URI SAN. Raises ValueError for anything that `str()` of an Identity does not give."""
        if not uri.startswith(SCHEME):
            raise ValueError("not a SPIFFE ID")
        control_plane, _, path = uri[len(SCHEME) :].partition("/")
        word, slash, name = path.partition("/")
        try:
            role = Role(word)
        except ValueError:
            raise ValueError(f"no role {word[:32]!r}") from None
        identity = cls(control_plane, role, name)
        if slash and not name:
            raise ValueError("an empty path segment")
        return identity
