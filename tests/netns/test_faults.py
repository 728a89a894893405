"""Every fault of lab.faults, with the real daemons through a real Envoy: traffic comes back by itself, in good time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.faults import FAULTS, PREPARE, Fault, Scene, suffer
from lab.lab import Lab

pytestmark = pytest.mark.netns

#: Far above what docs/benchmarks.md says, far below WireGuard's own 15 s: this is no benchmark.
PATIENCE_S = 8.0


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab("envoy-sni") as lab:
        yield Scene.start(lab)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_traffic_comes_back_by_itself(scene: Scene, fault: Fault) -> None:
    if prepare := PREPARE.get(fault.name):
        prepare(scene)
    outage = suffer(scene, fault)
    if fault.lossless:
        assert outage.lost == 0, f"{outage.lost} of {outage.report.sent} packets lost"
    assert outage.outage_s < PATIENCE_S, scene.client.process.tail(30) + "\n" + scene.server.process.tail(30)
