"""When a certificate file ends, for status and metrics."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path


def expires_in_s(path: Path, wall: float) -> float | None:
    """Seconds until the first certificate in a PEM file ends, negative when it has; None when the file cannot be read."""
    try:
        stat = path.stat()
        return _not_after(path, stat.st_mtime_ns, stat.st_ino) - wall
    except (OSError, ValueError, KeyError):
        return None


@lru_cache(maxsize=4)
def _not_after(path: Path, modified_ns: int, inode: int) -> float:
    # The decoder behind SSLSocket.getpeercert(): cryptography's x509 would cost this process 8 MiB.
    decoded = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    return float(ssl.cert_time_to_seconds(decoded["notAfter"]))
