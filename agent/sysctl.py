"""Reads and writes sysctls through /proc/sys, those of the network namespace of this process."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from agent.errors import ConfigError, HostError, Unsupported

_ROOT = Path("/proc/sys")
_KEY = re.compile(r"net(\.[A-Za-z0-9_@:/-]+)+", re.ASCII)


def path_of(key: str) -> Path:
    """The file of a dotted key; a slash in the key is a dot of an interface's name, as with sysctl(8).

    Raises ConfigError for a key that is not of the network: all others would change the whole host.
    """
    parts = [part.replace("/", ".") for part in key.split(".")]
    if not _KEY.fullmatch(key) or any(part in (".", "..") for part in parts):
        raise ConfigError(f"sysctl {key!r}: expected a dotted key that starts with net., like net.ipv4.ip_forward")
    return _ROOT.joinpath(*parts)


def read(key: str) -> str | None:
    """The value with single spaces between its words; None when the kernel has no such key. Raises HostError."""
    try:
        return " ".join(path_of(key).read_text().split())
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise HostError(f"cannot read sysctl {key}: {exc.strerror}", exc.errno or 0) from exc


def write(key: str, value: str) -> None:
    """Raises HostError, or Unsupported where /proc/sys is read-only, as in a container that is not privileged."""
    try:
        path_of(key).write_text(value + "\n")
    except FileNotFoundError as exc:
        raise HostError(
            f"sysctl -w {key}={value}: this kernel or network namespace has no such key", errno.ENOENT
        ) from exc
    except OSError as exc:
        if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise Unsupported(
                f"sysctl -w {key}={value}: /proc/sys cannot be written here ({exc.strerror}); set it on the host or in the "
                "pod's securityContext.sysctls, or run privileged"
            ) from exc
        raise HostError(f"sysctl -w {key}={value}: {exc.strerror}", exc.errno or 0) from exc
