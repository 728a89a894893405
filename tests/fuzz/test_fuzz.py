"""Each fuzz target beside this file runs for a short while with a fresh seed; `make fuzz` runs them for long.

A target is a program: `python -m tests.fuzz.fuzz_NAME --seconds S [--seed N]` prints how many inputs it tried, and exits with 1, showing
the input, when one of them led to anything but a value or an error of our own.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))
SECONDS = float(os.environ.get("RHIZOME_FUZZ_SECONDS", "10"))
#: Far below what every target does on a slow machine (about 1,000 a second); a target that hangs does none.
LEAST_PER_S = 50


def test_there_are_targets() -> None:
    assert TARGETS


@pytest.mark.timeout(SECONDS * 2 + 60)
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found(target: str) -> None:
    seed = secrets.randbelow(2**31)
    command = [sys.executable, "-m", f"tests.fuzz.{target}", "--seconds", str(SECONDS), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS * 2 + 30, check=False)
    print(done.stdout.strip())
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    tried = re.search(r"([0-9]+) inputs", done.stdout)
    assert tried is not None, done.stdout
    assert int(tried[1]) >= SECONDS * LEAST_PER_S
