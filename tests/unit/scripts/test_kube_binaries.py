"""scripts/kube-binaries builds nothing that is there, and says what to do when it cannot build."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "kube-binaries"


def run(home: Path, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HOME": str(home)} | variables
    return subprocess.run([SCRIPT, *names], env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_ready_programs_are_used_and_nothing_is_built(tmp_path: Path) -> None:
    done = run(tmp_path, "etcd", "kubectl", ETCD="/bin/true", KUBECTL="/bin/true")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_ready_program_that_is_none_is_reported(tmp_path: Path) -> None:
    done = run(tmp_path, "etcd", ETCD="/nowhere/etcd")
    assert done.returncode == 1
    assert done.stderr == "kube-binaries: ETCD=/nowhere/etcd is no program\n"


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    done = run(tmp_path, "kubelet")
    assert done.returncode == 1
    assert "there is no 'kubelet'" in done.stderr
    assert "konnectivity-agent" in done.stderr


def test_a_go_that_is_too_old_is_named_with_the_ways_out(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text(
        '#!/bin/sh\n[ "$1" = version ] && echo "go version go1.19" && exit\necho "invalid go version" >&2\nexit 1\n'
    )
    go.chmod(0o755)
    done = run(tmp_path, "etcd", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert (
        "go version go1.19 cannot build kubernetes, which needs Go 1.24.0 or newer: invalid go version" in done.stderr
    )
    assert "KUBE_APISERVER, KUBECTL and ETCD name ready programs" in done.stderr
    assert not list((tmp_path / ".cache" / "rhizome" / "bin").glob("build.*"))
