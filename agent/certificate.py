"""When a certificate file, or a token file, ends, for status and metrics."""

from __future__ import annotations

import json
import ssl
from base64 import urlsafe_b64decode
from functools import lru_cache
from pathlib import Path


def expires_in_s(path: Path, wall: float) -> float | None:
    """Seconds until the first certificate in a PEM file, or the JSON Web Token in a file, ends, negative when it has; None
    when the file cannot be read."""
    try:
        stat = path.stat()
        return _validity(path, stat.st_mtime_ns, stat.st_ino)[1] - wall
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def lifetime_s(path: Path) -> float | None:
    """For how long the certificate or token in a file was issued; None when that cannot be read."""
    try:
        stat = path.stat()
        begins_at, ends_at = _validity(path, stat.st_mtime_ns, stat.st_ino)
        return None if begins_at is None else ends_at - begins_at
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


@lru_cache(maxsize=4)
def _validity(path: Path, modified_ns: int, inode: int) -> tuple[float | None, float]:
    with path.open("rb") as file:
        head = file.read(2)
        if head == b"ey":  # `{"` in base64: our own token, whose signature is others' to verify
            payload = (head + file.read(16 * 1024)).split(b".")[1]
            claims = json.loads(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
            return (float(claims["iat"]) if "iat" in claims else None), float(claims["exp"])
    # The decoder behind SSLSocket.getpeercert(): cryptography's x509 would cost this process 8 MiB.
    decoded = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    begins_at, ends_at = (ssl.cert_time_to_seconds(decoded[name]) for name in ("notBefore", "notAfter"))
    return float(begins_at), float(ends_at)
