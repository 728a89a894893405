"""A probe that runs beside whatever a test does, and what it saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lab.processes import LabError, Process


@dataclass(frozen=True, slots=True)
class Report:
    """Counts of questions, and seconds of outage: from the first lost question to the next that was answered.

    `first_answer_at` is on the clock of time.monotonic(), None when there was no answer, as are then the round trips.
    """

    sent: int
    answered: int
    outage_s: float
    outages_s: tuple[float, ...]
    first_answer_at: float | None
    rtt_p50_ms: float
    rtt_p95_ms: float
    rtt_p99_ms: float
    rtt_max_ms: float

    @property
    def lost(self) -> int:
        return self.sent - self.answered

    @classmethod
    def from_json(cls, text: str) -> Self:
        read = json.loads(text)
        times = {name: float("nan") if ms is None else ms for name, ms in read["rtt_ms"].items()}
        return cls(
            sent=read["sent"],
            answered=read["answered"],
            outage_s=read["outage_s"],
            outages_s=tuple(read["outages_s"]),
            first_answer_at=read["first_answer_at"],
            rtt_p50_ms=times["p50"],
            rtt_p95_ms=times["p95"],
            rtt_p99_ms=times["p99"],
            rtt_max_ms=times["max"],
        )


class Probe:
    """Runs from the start of the `with` block to its end; `report` is there afterwards."""

    def __init__(self, spawn: Callable[[], Process]) -> None:
        self._spawn = spawn
        self._process: Process | None = None
        self._report: Report | None = None

    @property
    def report(self) -> Report:
        """Raises LabError while the probe runs."""
        if self._report is None:
            raise LabError("the probe has not ended yet")
        return self._report

    def wait_for_answer(self, timeout_s: float = 30.0) -> None:
        """Return after the first answer. Raises LabError when there is none within `timeout_s`."""
        assert self._process is not None
        self._process.wait_for_output("answered", timeout_s)

    def __enter__(self) -> Self:
        self._process = self._spawn()
        self._process.wait_for_output("started")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)
        if exc is None:
            self._report = Report.from_json(self._process.output().splitlines()[-1])
