"""The image: its size and how long a build takes, as `make image-proof` finds them.

Debian with its own Python stands in for the base image, so the part on top of it is the figure that counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure

_ROOT = Path(__file__).parent.parent
_FIGURES = _ROOT / "build" / "image-proof" / "figures.json"
_NOTE = "built twice, {files} files, {differences} of them different; base image: debootstrap's Debian with its Python"


def run() -> Iterator[Figure]:
    subprocess.run(["make", "-C", str(_ROOT), "image-proof"], check=True, stdout=sys.stderr)
    found = json.loads(_FIGURES.read_text())
    note = _NOTE.format(**found)
    yield Figure("image.build_s", found["seconds"], "s", note=note)
    yield Figure("image.mib", found["mib"], "MiB", note="unpacked")
    yield Figure("image.on_top_mib", found["mib_on_top"], "MiB", note="without the base image")
