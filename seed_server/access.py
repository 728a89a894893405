"""Which sidecar may reach which of the shoot's ranges. Pure.

A rule is written `NAME=RANGE`. NAME is the name in a sidecar's certificate, in which `*` stands for any text; RANGE is `all`,
`nodes`, `pods`, `services` or a network within them. A sidecar gets what all rules for its name give together. Without any rule
every sidecar may reach everything; as soon as there is one, a sidecar that no rule names is not let in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from agent.kinds import Kind
from agent.model import IPNetwork, networks

_NAME = re.compile(r"[a-z0-9.*-]{1,253}", re.ASCII)
KINDS = ("nodes", "pods", "services")
ALL = "all"


@dataclass(frozen=True, slots=True)
class Access:
    """One rule. `target` is one of KINDS, ALL, or a network."""

    name: str
    target: str | IPNetwork

    def matches(self, name: str) -> bool:
        return re.fullmatch(".*".join(map(re.escape, self.name.split("*"))), name) is not None

    def __str__(self) -> str:
        return f"{self.name}={self.target}"


def parse(text: str) -> Access:
    """Raises ValueError with the rule that the text breaks."""
    name, equals, target = text.partition("=")
    if not equals:
        raise ValueError("has no '=': write NAME=RANGE, such as prometheus-*=nodes")
    if not _NAME.fullmatch(name):
        raise ValueError("the name has only a-z, 0-9, '-', '.' and '*'")
    if target in (*KINDS, ALL):
        return Access(name, target)
    try:
        return Access(name, networks([target])[0])
    except ValueError:
        raise ValueError(
            f"the range is none of {', '.join((ALL, *KINDS))} and no network such as 10.250.0.0/16"
        ) from None


ACCESS: Kind[Access] = Kind(
    "NAME=RANGE", "a sidecar's name and a range, such as prometheus-*=nodes", "prometheus-*=nodes", parse
)


def reach(
    rules: Iterable[Access], name: str, declared: Iterable[tuple[str, tuple[IPNetwork, ...]]]
) -> tuple[IPNetwork, ...] | None:
    """The ranges that the sidecar `name` may reach, None when no rule names it. `declared` pairs a kind with its ranges."""
    rules, by_kind = tuple(rules), dict(declared)
    every = tuple(dict.fromkeys(network for ranges in by_kind.values() for network in ranges))
    if not rules:
        return every
    own = [rule for rule in rules if rule.matches(name)]
    found: list[IPNetwork] = []
    for rule in own:
        if isinstance(rule.target, str):
            found += every if rule.target == ALL else by_kind[rule.target]
        elif any(_within(rule.target, network) for network in every):
            found.append(rule.target)
    return tuple(dict.fromkeys(found)) if own else None


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
