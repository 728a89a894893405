"""Aligned tables for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ROWS_MAX = 50


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], most: int = ROWS_MAX) -> list[str]:
    """An aligned table with an empty line before it; nothing for no rows; columns without a value are left out."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if not cells:
        return []
    more = len(cells) - most
    cells = [list(heads), *cells[:most]]
    columns = [index for index in range(len(heads)) if any(row[index] for row in cells[1:])]
    widths = {index: max(len(row[index]) for row in cells) for index in columns}
    lines = ["  ".join(row[index].ljust(widths[index]) for index in columns).rstrip() for row in cells]
    return ["", *lines] + ([f"... and {more} more (-o json has them all)"] if more > 0 else [])


def clean(text: str) -> str:
    """Without control characters: some of the text comes from the other side and must not reach the terminal as such."""
    return "".join(c if c.isprintable() else "?" for c in text)
