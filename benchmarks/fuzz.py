"""How many inputs each fuzz target tried without a finding: a record, not a race."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure

SECONDS = 60.0
_ROOT = Path(__file__).parent.parent


def run() -> Iterator[Figure]:
    """`fuzz.TARGET.inputs`. Raises RuntimeError with the input when a target finds one."""
    for target in sorted((_ROOT / "tests" / "fuzz").glob("fuzz_*.py")):
        command = [sys.executable, "-m", f"tests.fuzz.{target.stem}", "--seconds", str(SECONDS)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        tried = re.search(r"([0-9]+) inputs", done.stdout)
        if done.returncode or tried is None:
            raise RuntimeError(f"{target.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        note = f"without a finding, in {SECONDS:g} s"
        yield Figure(f"fuzz.{target.stem.removeprefix('fuzz_')}.inputs", float(tried[1]), "inputs", note=note)
