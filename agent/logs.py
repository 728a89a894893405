"""Log lines: one JSON object each with fixed fields first, or text for people. Light: the carrier process uses it too.

A record's `extra` is what makes it useful: `event` is `noun.verb`, the others are values. Only what was given is written.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TextIO

#: In this order, before any other extra. `msg` follows `event`; `error` is a traceback.
FIELDS = ("role", "control_plane", "ifname", "peer", "stream", "stage", "reason")

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}

_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
#: As wg-quick, JSON and the UAPI write keys: `PrivateKey = <base64>`, `"preshared_key": "<base64>"`, `private_key=<hex>`.
_KEY = re.compile(
    r"((?:public|private|pre-?shared)?[ _-]?key)([\"']?\s*[=:]\s*[\"']?)([0-9a-f]{64}|[A-Za-z0-9+/]{43}=)",
    re.IGNORECASE,
)
#: `{"` in base64, as both parts of a JSON Web Token begin (RFC 7519 section 3.1).
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]*)?")
_ONE_TIME = re.compile(r"rzt1_[A-Za-z0-9_.-]{8,}")
_AUTHORIZATION = re.compile(r"(?<=authorization:)[ \t]*\S+[ \t]+\S+", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")


def redact(text: str) -> str:
    """The text without private and preshared keys, PEM private keys, tokens and credentials.

    A belt: nothing of ours puts a secret into a message, but text from elsewhere may hold one.
    """
    text = _ONE_TIME.sub("(hidden)", _TOKEN.sub("(hidden)", _PEM.sub("(hidden)", text)))
    text = _KEY.sub(lambda m: m[0] if m[1].lower().startswith("public") else f"{m[1]}{m[2]}(hidden)", text)
    return _USERINFO.sub("(hidden)", _AUTHORIZATION.sub(" (hidden)", text))


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """The extras of a record that are not None, in the fixed order."""
    given = {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}
    ordered = {key: given.pop(key) for key in ("event", *FIELDS) if key in given}
    return ordered | given


class JsonFormatter(logging.Formatter):
    """One line of JSON per record. `static` are fields of this process, such as its role."""

    def __init__(self, static: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._static = dict(static or {})

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"ts": timestamp(record.created), "level": record.levelname.lower()}
        extras = fields(record)
        if "event" in extras:
            line["event"] = extras.pop("event")
        line["msg"] = redact(record.getMessage())
        line["logger"] = record.name
        for key, value in (self._static | extras).items():
            line[f"{key}_" if key in line else key] = plain(value)
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, who, what, and the extras behind it."""

    def format(self, record: logging.LogRecord) -> str:
        extras = fields(record)
        extras.pop("event", None)
        tail = " ".join(f"{key}={plain(value)}" for key, value in extras.items())
        name = record.name.removeprefix("rhizome.")
        line = f"{timestamp(record.created)[11:23]} {record.levelname:<7} {name}: {redact(record.getMessage())}"
        line = f"{line}  {tail}" if tail else line
        if record.exc_info:
            line += "\n" + redact(self.formatException(record.exc_info))
        return line


def timestamp(created: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    seconds, fraction = divmod(created, 1)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1000):03d}Z"


def plain(value: Any) -> Any:
    """What JSON can say as it is; everything else as its redacted text."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return redact(str(value))


def configure(
    level: str,
    format: str,
    *,
    static: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> logging.Handler:
    """Send everything of this process to stderr (or `stream`). `level` and `format` are values of the settings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(static) if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio says "Using selector" at DEBUG, libraries have their own idea of what is interesting.
    for name in ("asyncio", "aiohttp", "pyroute2", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    return handler


class Limited:
    """Logs at most one line per key every `every_s`, and says with the next one how many were left out.

    For what an outsider can provoke: a stranger must not be able to fill the disk. Remembers the last `keys_max` keys.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        every_s: float = 10.0,
        keys_max: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._every_s = every_s
        self._keys_max = keys_max
        self._clock = clock
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()  # last line's time, left out since

    def log(self, level: int, key: str, message: str, *args: object, extra: Mapping[str, Any] | None = None) -> None:
        now = self._clock()
        last, left_out = self._seen.get(key, (None, 0))
        if last is not None and now - last < self._every_s:
            self._seen[key] = (last, left_out + 1)
            return
        self._seen[key] = (now, 0)
        self._seen.move_to_end(key)
        if len(self._seen) > self._keys_max:
            self._seen.popitem(last=False)
        more = {"suppressed": left_out} if left_out else {}
        self._log.log(level, message, *args, extra={**(extra or {}), **more})
