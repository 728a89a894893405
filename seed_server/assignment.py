"""Which client carries a prefix that several of them could carry. Pure.

Rendezvous hashing: every prefix goes to the candidate with the highest hash of (prefix, name). A client that comes or goes
moves only the prefixes that it wins or held; all replicas agree without talking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from agent.model import IPNetwork


def assign(offers: Mapping[str, Iterable[IPNetwork]]) -> dict[IPNetwork, str]:
    """`offers`: client name -> shared prefixes that it could carry. Returns prefix -> the one client that carries it."""
    owner: dict[IPNetwork, str] = {}
    for name, prefixes in offers.items():
        for prefix in prefixes:
            rival = owner.get(prefix)
            if rival is None or _weight(prefix, name) > _weight(prefix, rival):
                owner[prefix] = name
    return owner


def _weight(prefix: IPNetwork, name: str) -> tuple[bytes, str]:
    return blake2b(f"{prefix}\0{name}".encode(), digest_size=8).digest(), name
