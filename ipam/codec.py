"""Allocations as JSON objects: what every store on disk or over the network writes.

Unknown fields are ignored, so that an older Rhizome reads what a newer one of the same format version wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from sys import intern
from typing import Any

from ipam.model import Allocation, Owner, block_of


def encode(allocation: Allocation) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "owner": encode_owner(allocation.owner),
        "addresses": [str(block) for block in allocation.blocks],
        "generation": allocation.generation,
        "since": allocation.since,
    }
    if allocation.expires is not None:
        fields["expires"] = allocation.expires
    if allocation.rests_until is not None:
        fields["rests_until"] = allocation.rests_until
    if allocation.parent is not None:
        fields["parent"] = encode_owner(allocation.parent)
    return fields


def decode(fields: Mapping[str, Any]) -> Allocation:
    """Raises ValueError saying what is wrong."""
    try:
        return Allocation(
            decode_owner(fields["owner"]),
            tuple(map(block_of, fields["addresses"])),
            int(fields["generation"]),
            float(fields["since"]),
            _time(fields.get("expires")),
            _time(fields.get("rests_until")),
            decode_owner(parent) if (parent := fields.get("parent")) is not None else None,
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"not an allocation: {exc!r}") from exc


def encode_owner(owner: Owner) -> dict[str, str]:
    return {"kind": owner.kind, "namespace": owner.namespace, "name": owner.name, "uid": owner.uid}


def decode_owner(fields: Mapping[str, Any]) -> Owner:
    """Raises ValueError saying what is wrong."""
    try:
        # Thousands of owners share a few kinds and namespaces.
        return Owner(intern(fields["kind"]), intern(fields["namespace"]), fields["name"] + "", fields["uid"] + "")
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not an owner: {exc!r}") from exc


def _time(value: Any) -> float | None:
    return None if value is None else float(value)
