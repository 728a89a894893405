"""Runs the project's benchmarks: python -m benchmarks [NAME...] [-o table|json|svg] [--out FILE].

Each module of this package that has `run() -> Iterator[Figure]` is a benchmark; its name is the module's. `json` prints one
object per figure and line, as soon as it is measured. `svg` draws every figure that has a baseline as a pair of bars.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import benchmarks
from benchmarks.figure import Figure

EXAMPLES = """examples:
  python -m benchmarks --list
  python -m benchmarks relay
  python -m benchmarks relay wireguard -o json
  python -m benchmarks relay -o svg --out relay.svg
"""


def names() -> list[str]:
    """Every benchmark of this package, in alphabetical order."""
    helpers = {"__main__", "figure", "plot"}
    return sorted(
        m.name
        for m in pkgutil.iter_modules(benchmarks.__path__)
        if m.name not in helpers and not m.name.startswith("_")
    )


def measure(selected: list[str]) -> Iterator[Figure]:
    for name in selected:
        yield from importlib.import_module(f"benchmarks.{name}").run()


def row(figure: Figure) -> str:
    ratio = f"{figure.ratio:8.2f}x" if figure.ratio is not None else " " * 9
    baseline = f"{figure.baseline:12.4g}" if figure.baseline is not None else " " * 12
    return f"{figure.figure:44} {figure.value:12.4g} {figure.unit:14} {baseline} {ratio} {figure.n:5d}  {figure.note}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    parser.add_argument("-o", "--output", choices=("table", "json", "svg"), default="table")
    parser.add_argument("--out", type=Path, default=None, help="with svg: the file to write (default: benchmarks.svg)")
    parser.add_argument("--list", action="store_true", help="print the names of all benchmarks")
    args = parser.parse_args(argv)
    known = names()
    if args.list:
        print("\n".join(known))
        return 0
    if unknown := [name for name in args.names if name not in known]:
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    selected = args.names or known
    if args.output == "table":
        print(f"{'figure':44} {'value':>12} {'unit':14} {'baseline':>12} {'ratio':>9} {'n':>5}  note")
    figures = []
    for figure in measure(selected):
        figures.append(figure)
        if args.output != "svg":
            print(figure.to_json() if args.output == "json" else row(figure), flush=True)
        else:
            print(row(figure), file=sys.stderr, flush=True)
    if args.output == "svg":
        from benchmarks.plot import draw

        draw(figures, args.out or Path("benchmarks.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
