"""One measured figure, and how it is printed. Nothing here is typed in by hand: a value comes from a run of this process."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """`baseline` is what the value is compared with, measured in the same run; None where there is nothing to compare.

    `n` is the number of samples the value is taken from (the value is their median unless the name says p95 or the like).
    """

    figure: str
    value: float
    unit: str
    baseline: float | None = None
    n: int = 1
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Value divided by baseline, None without a baseline."""
        return self.value / self.baseline if self.baseline else None

    def to_json(self) -> str:
        return json.dumps(
            {
                "figure": self.figure,
                "value": _rounded(self.value),
                "unit": self.unit,
                "baseline": _rounded(self.baseline),
                "ratio": _rounded(self.ratio),
                "n": self.n,
                "note": self.note,
            }
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
