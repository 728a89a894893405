"""The image: its size and how long a build takes, as the last `make image-proof` found them (it takes minutes, so it is not repeated here).

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
_PLACE = _ROOT / "build" / "image-proof"
_NOTE = "built twice, {files} files, {differences} of them different; base image: debootstrap's Debian with its Python"


def run() -> Iterator[Figure]:
    figures = _PLACE / "figures.json"
    if not figures.exists():
        proof = [str(_ROOT / "scripts" / "image-proof"), str(_PLACE), "--figures", str(figures)]
        subprocess.run(proof, check=True, stdout=sys.stderr)
    found = json.loads(figures.read_text())
    note = _NOTE.format(**found)
    yield Figure("image.build_s", found["seconds"], "s", note=note)
    yield Figure("image.mib", found["mib"], "MiB", note="unpacked")
    yield Figure("image.on_top_mib", found["mib_on_top"], "MiB", note="without the base image")
