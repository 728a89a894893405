"""Who the holder of a good token is: from its subject to a role, and from what it is bound to to a name. Pure.

A rule is written `SUBJECT=ROLE` or `SUBJECT=ROLE/NAME`, where SUBJECT is a token's `sub` in full. Without a NAME, a shoot
client is named after the node, and any other role after the pod, that Kubernetes has bound the token to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.identity import Identity, Role, dns_name
from agent.kinds import Kind

#: A seed server is known by its certificate alone.
ROLES = tuple(role for role in Role if role is not Role.SEED_SERVER)
SUBJECT_MAX_CHARS = 512


@dataclass(frozen=True, slots=True)
class Subject:
    """One rule. `name` is empty when the token's binding names the holder."""

    subject: str
    role: Role
    name: str = ""

    def __str__(self) -> str:
        return f"{self.subject}={self.role.value}" + (f"/{self.name}" if self.name else "")


def parse(text: str) -> Subject:
    """Raises ValueError with the rule that the text breaks."""
    subject, equals, target = text.rpartition("=")
    word, slash, name = target.partition("/")
    if not equals or not subject:
        raise ValueError("not SUBJECT=ROLE, such as system:serviceaccount:kube-system:rhizome=shoot-client")
    if len(subject) > SUBJECT_MAX_CHARS or not subject.isprintable():
        raise ValueError(f"a subject is at most {SUBJECT_MAX_CHARS} printable characters")
    role = next((role for role in ROLES if role.value == word), None)
    if role is None:
        raise ValueError(f"the role is none of {', '.join(role.value for role in ROLES)}")
    return Subject(subject, role, dns_name(name) if slash else "")


SUBJECT: Kind[Subject] = Kind(
    "SUBJECT=ROLE",
    "a token's subject and its role",
    "system:serviceaccount:kube-system:rhizome-shoot-client=shoot-client",
    parse,
    show=str,
)


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """Which tokens are good here. `audiences` name this server: a token for another control plane's names another one."""

    control_plane: str
    issuers: tuple[str, ...]
    audiences: tuple[str, ...]
    subjects: tuple[Subject, ...]

    def holder(self, claims: Mapping[str, Any]) -> Identity:
        """Who the holder of these verified claims is. Raises ValueError, in words for the holder."""
        rule = next((rule for rule in self.subjects if rule.subject == claims["sub"]), None)
        if rule is None:
            raise ValueError("its subject is none that this server knows (oidc_subjects)")
        name = rule.name or _bound_name(rule.role, claims)
        return Identity(self.control_plane, rule.role, name)


def _bound_name(role: Role, claims: Mapping[str, Any]) -> str:
    """After the node for a shoot client, because there is one on each and its pod's name changes."""
    binding = claims.get("kubernetes.io")
    for kind in ("node", "pod") if role is Role.SHOOT_CLIENT else ("pod",):
        bound = binding.get(kind) if isinstance(binding, dict) else None
        name = bound.get("name") if isinstance(bound, dict) else None
        if isinstance(name, str):
            return name
    raise ValueError("it is bound to no pod, so it does not say whose it is: use a projected token")
