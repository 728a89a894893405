"""Reading the fields of a JSON object from the network: each reader gives a value of its kind or raises BadMessage. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from agent.errors import BadMessage
from agent.model import IPNetwork, networks

ITEMS_MAX = 1024  # per list: a node has a handful of prefixes, a control plane some dozens
TEXT_MAX = 512

_T = TypeVar("_T")


def wrong(field: str, want: str) -> BadMessage:
    return BadMessage(f"control message: {field} is not {want}")


def string(body: Mapping[str, Any], field: str, limit: int = TEXT_MAX) -> str:
    """Printable text, cut at `limit` characters: it ends in logs and on terminals."""
    value = body.get(field, "")
    if not isinstance(value, str):
        raise wrong(field, "text")
    return "".join(c if c.isprintable() else "?" for c in value[:limit])


def number(body: Mapping[str, Any], field: str, low: float, high: float) -> float:
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise wrong(field, f"a number in {low:g}..{high:g}")
    return float(value)


def flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field, False)
    if not isinstance(value, bool):
        raise wrong(field, "true or false")
    return value


def integer(body: Mapping[str, Any], field: str, low: int, high: int) -> int:
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong(field, f"an integer in {low}..{high}")
    return value


def items(body: Mapping[str, Any], field: str, read: Callable[[Any], _T], want: str) -> tuple[_T, ...]:
    value = body.get(field, [])
    if not isinstance(value, list) or len(value) > ITEMS_MAX:
        raise wrong(field, f"a list of at most {ITEMS_MAX}")
    try:
        return tuple(read(item) for item in value)
    except (ValueError, TypeError, KeyError, IndexError) as exc:
        raise wrong(field, want) from exc


def only_text(value: Any) -> str:
    """Raises TypeError, for `items` to say which field it is."""
    if not isinstance(value, str):
        raise TypeError
    return value


def prefixes(body: Mapping[str, Any], field: str) -> tuple[IPNetwork, ...]:
    return items(body, field, lambda v: networks([only_text(v)])[0], "a list of canonical prefixes")


def matching(body: Mapping[str, Any], field: str, shape: re.Pattern[str], want: str) -> str:
    """Text of one shape; empty when it is not there."""
    text = string(body, field)
    if text and not shape.fullmatch(text):
        raise wrong(field, want)
    return text
