"""What the demo found out, and how it says so to a stranger. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `detail` is what was seen, in words, whether good or bad."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Reached:
    """One request from the seed to something in the shoot, over one address family."""

    what: str
    address: str
    answered_by: str
    seconds: float


@dataclass(slots=True)
class Findings:
    """Collected while the demo runs. A demo works when there are checks, all passed, and all figures are there."""

    checks: list[Check] = field(default_factory=list)
    reached: list[Reached] = field(default_factory=list)
    path: Sequence[str] = ()
    data_plane: str = ""
    first_packet_s: float = math.nan
    handshake_age_s: float = math.nan
    mbit_s: float = math.nan

    def check(self, name: str, passed: bool, detail: str) -> Check:
        made = Check(name, passed, detail)
        self.checks.append(made)
        return made

    @property
    def works(self) -> bool:
        figures = (self.first_packet_s, self.handshake_age_s, self.mbit_s)
        return bool(self.checks) and all(check.passed for check in self.checks) and not any(map(math.isnan, figures))

    def lines(self) -> list[tuple[str, str]]:
        """The verdict as label and text; an empty label goes on with the one before."""
        rows = [
            ("reached", f"{r.what:<8} {r.address:<24} answered by {r.answered_by} in {r.seconds * 1e3:.1f} ms")
            for r in self.reached
        ]
        rows += [("path", line) for line in self.path]
        rows += [("data plane", self.data_plane)]
        rows += [("first packet", _figure(self.first_packet_s, "s after the client was started", 2))]
        rows += [("handshake", _figure(self.handshake_age_s, "s ago", 0))]
        rows += [("throughput", _figure(self.mbit_s, "Mbit/s on one TCP connection, checksums equal at both ends", 0))]
        return grouped([*rows, *proofs(self.checks)])


def proofs(checks: Sequence[Check]) -> list[tuple[str, str]]:
    """Checks as label and text, what failed at the end."""
    rows = [("proven" if check.passed else "FAILED", f"{check.name}: {check.detail}") for check in checks]
    return sorted(rows, key=lambda row: row[0] == "FAILED")


def grouped(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same, with labels left out that are the same as the one before."""
    return [("" if index and rows[index - 1][0] == label else label, text) for index, (label, text) in enumerate(rows)]


def _figure(value: float, unit: str, digits: int) -> str:
    return "not known" if math.isnan(value) else f"{value:.{digits}f} {unit}"
