"""Draws figures against their baselines as horizontal bars, one panel per unit, into an SVG."""

from __future__ import annotations

import platform
from pathlib import Path

from benchmarks.figure import Figure


def draw(figures: list[Figure], path: Path) -> None:
    """Write `path`. Figures without a baseline are drawn alone; the machine and n stand in the picture."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    units = sorted({f.unit for f in figures})
    fig, axes = plt.subplots(len(units), 1, figsize=(9, 1.2 + 0.55 * len(figures) + 0.6 * len(units)), squeeze=False)
    for ax, unit in zip(axes[:, 0], units, strict=True):
        rows = [f for f in figures if f.unit == unit]
        position = range(len(rows))
        ax.barh([p - 0.2 for p in position], [f.value for f in rows], height=0.38, label="Rhizome", color="#3a7d44")
        ax.barh(
            [p + 0.2 for p in position],
            [f.baseline or 0.0 for f in rows],
            height=0.38,
            label="baseline",
            color="#b0b0b0",
        )
        ax.set_yticks(list(position), [f"{f.figure} (n={f.n})" for f in rows], fontsize=8)
        ax.invert_yaxis()
        ax.set_xlabel(unit)
        ax.legend(fontsize=8)
    fig.suptitle(f"Rhizome benchmarks, {platform.machine()}, Linux {platform.release().split('-')[0]}", fontsize=10)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
