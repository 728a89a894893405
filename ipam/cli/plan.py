"""`rhizome-ipam plan FILE`: can this landscape work, and what is the least to change if not?"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from agent.cli.table import table
from agent.errors import ConfigError
from agent.exits import Exit
from ipam.cli import common
from ipam.inventory import Choice, Stock, choose, words
from ipam.networks import Problem
from ipam.planfile import PlanFile, parse
from ipam.planner import Change, Pair, Way, changes, pairs


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML (see examples/landscape.yaml) or JSON")
    parser.add_argument("--everywhere", action="store_true", help="every shoot on every seed, not only on its own")
    parser.add_argument(
        "--no-mapping", dest="mapping", action="store_false", help="count what could be mapped as impossible"
    )
    common.output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """FAILED when something of the plan cannot work."""
    file = parse(_document(arguments.file))
    found = tuple(pairs(file.plan, arguments.everywhere))
    problems = [p for p in file.plan.problems() if not (arguments.mapping and p.clash.mappable)]
    needed, exact = changes(file.plan, arguments.mapping)
    choices = _choices(file)
    common.show(
        arguments,
        _value(file, found, problems, needed, exact, choices),
        _lines(file, found, problems, needed, exact, choices),
    )
    lost = any(choice.chosen is None for _, choice in choices) or not all(d.fits for d in file.demands)
    stranded = not arguments.everywhere and any(pair.way is Way.IMPOSSIBLE for pair in found if _of_plan(file, pair))
    return Exit.FAILED if problems or needed or lost or stranded else Exit.OK


def _document(path: Path) -> Any:
    import yaml  # only here

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except (UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: not YAML: {exc}") from exc


def _of_plan(file: PlanFile, pair: Pair) -> bool:
    return file.plan.clusters[pair.shoot].seed == pair.seed


def _choices(file: PlanFile) -> list[tuple[str, Choice]]:
    """One request after the other, each counted where it went."""
    stocks = {stock.name: stock for stock in file.inventory}
    made = []
    for request in file.requests:
        choice = choose(stocks.values(), request.labels, request.count)
        if (taken := choice.chosen) is not None:
            stocks[taken.name] = Stock(taken.name, taken.capacity, taken.used + request.count, taken.labels)
        made.append((f"{request.name} ({request.count}, {words(request.labels)})", choice))
    return made


def _lines(
    file: PlanFile,
    found: tuple[Pair, ...],
    problems: list[Problem],
    needed: tuple[Change, ...],
    exact: bool,
    choices: list[tuple[str, Choice]],
) -> list[str]:
    count = Counter(pair.way for pair in found)
    lines = [", ".join(f"{count[way]} {way.value}" for way in Way) + f" of {len(found)} pairs of seed and shoot"]
    rows = [(p.seed, p.shoot, p.way.value, "; ".join([*map(str, p.mapped), *p.reasons])) for p in found]
    lines += table(("SEED", "SHOOT", "WAY", "HOW OR WHY"), rows, most=1000)
    if problems:
        lines += ["", "problems:", *(f"  {problem}" for problem in problems)]
    if needed:
        sure = "the fewest changes that help" if exact else "changes that help (fewer may do)"
        lines += ["", f"{sure}, {len(needed)}:", *(f"  {change}" for change in needed)]
    if file.demands:
        lines += ["", "capacity:", *(f"  {demand}" for demand in file.demands)]
    for name, choice in choices:
        lines += ["", f"{name}: {choice.chosen.name if choice.chosen else 'no pool fits'}"]
        lines += table(("CANDIDATE", "WHY NOT"), [(stock.name, why) for stock, why in choice.rejected])[1:]
    return lines


def _value(
    file: PlanFile,
    found: tuple[Pair, ...],
    problems: list[Problem],
    needed: tuple[Change, ...],
    exact: bool,
    choices: list[tuple[str, Choice]],
) -> dict[str, Any]:
    return {
        "pairs": [
            {
                "seed": p.seed,
                "shoot": p.shoot,
                "way": p.way.value,
                "mapped": [
                    {"of": m.item.of, "use": m.item.use.value, "network": str(m.item.network), "as": str(m.block)}
                    for m in p.mapped
                ],
                "reasons": list(p.reasons),
            }
            for p in found
        ],
        "problems": list(map(str, problems)),
        "changes": [
            {
                "of": c.old.of,
                "use": c.old.use.value,
                "network": str(c.old.network),
                "source": c.old.source,
                "take": str(c.proposal) if c.proposal else None,
            }
            for c in needed
        ],
        "fewest": exact,
        "capacity": [
            {
                "pool": str(d.pool),
                "blocks": d.pool.size,
                "addresses_each": d.usable,
                "planned": d.planned,
                "fits": d.fits,
            }
            for d in file.demands
        ],
        "requests": [
            {
                "request": name,
                "chosen": choice.chosen.name if choice.chosen else None,
                "rejected": {stock.name: why for stock, why in choice.rejected},
            }
            for name, choice in choices
        ],
    }
