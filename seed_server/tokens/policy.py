"""Who the holder of a good token is: from its subject to a role, and from what it is bound to to a name. Pure.

A rule is written `SUBJECT=ROLE` or `SUBJECT=ROLE/NAME`, where SUBJECT is a token's `sub` in full. Without a NAME, a shoot
client is named after the node, and any other role after the pod, that Kubernetes has bound the token to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from agent.enrolment import digest_of, enrollable
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


#: What of ours a stream was opened with, in its ticket.
ONE_TIME, OWN = "one-time", "own"


def ticket(kind: str, shown: str) -> str:
    """What the Up of a stream says of the credential that it was opened with, without telling it; empty for others' tokens."""
    return f"{kind} {digest_of(shown)}" if kind else ""


class Policy(Protocol):
    """Which tokens of some issuers are good here. `words` are for the holders of bad ones, by cause, where they say more than
    usual; `kind` is that of their tickets."""

    kind: ClassVar[str]
    algorithms: ClassVar[tuple[str, ...]]
    words: ClassVar[Mapping[str, str]]

    @property
    def issuers(self) -> tuple[str, ...]: ...
    @property
    def audiences(self) -> tuple[str, ...]: ...

    def holder(self, claims: Mapping[str, Any]) -> Identity:
        """Who the holder of these verified claims is. Raises ValueError, in words for the holder."""


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """Others' tokens. `audiences` name this server: a token for another control plane's names another one."""

    #: None of them is symmetric: whoever knows a public key must not be able to sign with it (RFC 8725 section 3.1).
    algorithms: ClassVar[tuple[str, ...]] = (
        *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        *("ES256", "ES384", "ES512"),
    )
    words: ClassVar[Mapping[str, str]] = {}
    kind: ClassVar[str] = ""

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


_AGAIN = "have it enrolled with a new token (rhizome-agent enrol-token create)"


@dataclass(frozen=True, slots=True)
class OwnPolicy:
    """The credentials that the seed server of this control plane has signed itself."""

    kind: ClassVar[str] = OWN
    algorithms: ClassVar[tuple[str, ...]] = ("ES256",)
    words: ClassVar[Mapping[str, str]] = {
        "token_expired": f"it has ended, as this machine was away for longer than it lasts: {_AGAIN}",
        "token_key": f"it is signed with a key that this server has no more: {_AGAIN}",
        "token_signature": f"it is not what this server has signed: {_AGAIN}",
    }

    control_plane: str

    @property
    def issuers(self) -> tuple[str, ...]:
        """This server under its own name, which is no URL that an issuer of others' tokens could have."""
        return (str(Identity(self.control_plane, Role.SEED_SERVER)),)

    @property
    def audiences(self) -> tuple[str, ...]:
        """It signs for itself."""
        return self.issuers

    def holder(self, claims: Mapping[str, Any]) -> Identity:
        """Who the holder of these verified claims is. Raises ValueError, in words for the holder."""
        identity = enrollable(Identity.parse(str(claims["sub"])))
        if identity.control_plane != self.control_plane:
            raise ValueError("its subject is of another control plane")
        return identity


def _bound_name(role: Role, claims: Mapping[str, Any]) -> str:
    """After the node for a shoot client, because there is one on each and its pod's name changes."""
    binding = claims.get("kubernetes.io")
    for kind in ("node", "pod") if role is Role.SHOOT_CLIENT else ("pod",):
        bound = binding.get(kind) if isinstance(binding, dict) else None
        name = bound.get("name") if isinstance(bound, dict) else None
        if isinstance(name, str):
            return name
    raise ValueError("it is bound to no pod, so it does not say whose it is: use a projected token")
