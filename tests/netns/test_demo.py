"""The demo says that it works when it does, says what is wrong when it does not, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lab import addresses
from lab.daemons import Daemon, Pki, Value
from lab.demo import Demo, show
from lab.lab import Lab
from lab.processes import LabError
from lab.records import records
from lab.verdict import Check, Findings

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]


def lab_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", *words], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


def namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("rz*")}


def perform(lab: Lab) -> tuple[Findings, str]:
    console = Console(file=StringIO(), width=200)
    try:
        found = Demo(lab, console).run()
    finally:
        lab.down()
    show(found, console)
    assert isinstance(console.file, StringIO)
    return found, console.file.getvalue()


def test_the_demo_works_and_can_be_kept_and_removed() -> None:
    done = lab_command("demo", "--keep")
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "It works." in done.stdout
        assert "\x1b" not in done.stdout, "no colours where nobody sees them"
        for pair in (target.address for target in addresses.targets()):
            assert pair.v4 in done.stdout
            assert pair.v6 in done.stdout
        kept = [record for record in records() if record.kept]
        assert len(kept) == 1
        assert lab_command("exec", "node", "rhizome-agent", "status").stdout.startswith("UP")
        page = lab_command("exec", "seed", "curl", "-sS", "-m5", addresses.targets()[2].url())
        assert json.loads(page.stdout)["machine"] == "pod1"
    finally:
        removed = lab_command("down")
    assert kept[0].directory in removed.stdout
    assert not Path(kept[0].directory).exists()
    assert kept[0].namespaces
    assert not namespaces() & set(kept[0].namespaces)


class Open(Lab):
    """Somebody forgot the firewalls of the NAT router and of the node."""

    def up(self) -> None:
        super().up()
        self.nat.nft("flush chain inet lab forward\nflush chain inet lab input\n")
        self.node.nft("flush chain inet lab refuse_forward\nflush chain inet lab refuse_input\n")


class Foreign(Lab):
    """The client's certificate is of another control plane."""

    def shoot_client(self, index: int = 1, **settings: Value) -> Daemon:
        tls = Pki(self.directory / "other", "shoot--other").client("node-1")
        return super().shoot_client(index, tls_certificate=tls.certificate, tls_key=tls.key, **settings)


def test_an_open_door_is_seen() -> None:
    found, text = perform(Open("haproxy-sni"))
    assert not found.works
    assert "It does not work." in text
    failed = [check.name for check in found.checks if not check.passed]
    assert failed == [f"no way into the shoot, {when} the tunnel" for when in ("before", "with")]


def test_a_tunnel_that_does_not_come_up_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.demo.PATIENCE_S", 4.0)
    with pytest.raises(LabError, match="no packet crossed"):
        perform(Foreign("haproxy-sni"))


def test_findings_without_checks_or_figures_are_no_success() -> None:
    assert not Findings().works
    found = Findings()
    found.check("one", True, "seen")
    assert not found.works, "the figures are missing"
    whole = replace(found, first_packet_s=1.0, handshake_age_s=1.0, mbit_s=1.0)
    assert whole.works
    failed = replace(whole, checks=[*whole.checks, Check("two", False, "not seen")])
    assert not failed.works
    assert ("FAILED", "two: not seen") in failed.lines()
