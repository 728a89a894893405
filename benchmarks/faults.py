"""How long traffic is gone after each fault of lab.faults: a pod asked 100 times a second from the seed, through an SNI Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.figure import Figure
from lab.faults import FAULTS, PREPARE, Outage, Scene, suffer
from lab.lab import Lab

REPEATS = 3


def run() -> Iterator[Figure]:
    """`outage.NAME_s`: the median of REPEATS, each in a landscape of its own."""
    outages: dict[str, list[Outage]] = {fault.name: [] for fault in FAULTS}
    for _ in range(REPEATS):
        with Lab("envoy-sni") as lab:
            scene = Scene.start(lab)
            for fault in FAULTS:
                if prepare := PREPARE.get(fault.name):
                    prepare(scene)
                outages[fault.name].append(suffer(scene, fault))
    for fault in FAULTS:
        seen = outages[fault.name]
        lost = round(median(outage.lost for outage in seen))
        broken_s = median(outage.broken_s for outage in seen)
        note = f"{fault.words}; {lost} of {seen[0].report.sent} questions lost"
        if broken_s > 0.1:
            note += f"; counted from its return, {broken_s:.1f} s later"
        yield Figure(f"outage.{fault.name}_s", median(outage.outage_s for outage in seen), "s", n=len(seen), note=note)
