"""`make demo-kube` says that it works when it does and what is wrong when it does not, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lab.kube.demo import KubeDemo, show
from lab.kube.landscape import Landscape, Wiring

pytestmark = pytest.mark.kube

ROOT = Path(__file__).parents[2]


def left_behind() -> set[str]:
    labs = Path(tempfile.gettempdir()).glob("rhizome-lab-*")
    return {path.name for path in (*Path("/run/netns").glob("rz*"), *labs)}


@pytest.mark.parametrize("wiring", [Wiring.EGRESS_MTLS, Wiring.SIDECAR])
def test_it_works_and_leaves_nothing_behind(wiring: Wiring) -> None:
    before = left_behind()
    command = [sys.executable, "-m", "lab", "demo-kube", "--wiring", wiring.value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "It works." in done.stdout
    assert "$ kubectl logs web" in done.stdout
    assert any(words in done.stdout for words in wiring.down_words)
    assert "\x1b" not in done.stdout, "no colours where nobody sees them"
    assert left_behind() <= before


def test_a_way_beside_the_tunnel_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    landscape = Landscape(Wiring.EGRESS_UDS)
    monkeypatch.setattr(landscape, "close_tunnel", lambda: None)
    monkeypatch.setattr(landscape, "open_tunnel", lambda: None)
    output = StringIO()
    console = Console(file=output, width=200)
    try:
        checks = KubeDemo(landscape, console).run()
    finally:
        landscape.down()
    assert not show(checks, console)
    assert [check.name for check in checks if not check.passed] == ["without the tunnel"]
    assert "It does not work." in output.getvalue()
    assert "FAILED        without the tunnel" in output.getvalue()
