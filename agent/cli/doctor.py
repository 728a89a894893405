"""`rhizome-agent doctor`: what is wrong with the roles of this host, by the ids of alerts and runbooks, and what to do next."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.checks import checks_of
from agent.cli.status import answered, ask, fetch, sockets
from agent.cli.table import clean
from agent.doctor import Finding, Looks, Outcome, Process, examine
from agent.exits import Exit
from agent.status import RoleStatus

SECONDS = 3.0
SECONDS_MAX = 3600.0

_COLOURS = {Outcome.OK: "32", Outcome.WARN: "33", Outcome.BAD: "31"}


@dataclass(frozen=True, slots=True)
class Patient:
    """A role and what was found; without findings when it did not answer."""

    status: RoleStatus
    findings: tuple[Finding, ...] = ()

    @property
    def outcome(self) -> Outcome:
        return max((finding.outcome for finding in self.findings), default=Outcome.BAD)

    def having(self, outcome: Outcome) -> list[Finding]:
        return [finding for finding in self.findings if finding.outcome is outcome]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")
    parser.add_argument("--all", action="store_true", help="show also what is well")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=SECONDS,
        metavar="N",
        help=f"between the two looks; more of them see what happens seldom (default: {SECONDS:g})",
    )
    parser.add_argument(
        "--runtime-dir", type=Path, default=Path("/run/rhizome"), metavar="PATH", help="default: /run/rhizome"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text[:32]!r} is no number of seconds from 0.1 to {SECONDS_MAX:g}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """OK when no check of any role is bad, else FAILED. Raises RhizomeError where no role runs."""
    patients = sorted(_patients(arguments.runtime_dir, arguments.seconds), key=lambda patient: -patient.outcome)
    if arguments.output == "json":
        sys.stdout.write(json.dumps([_plain(patient, arguments.seconds) for patient in patients], indent=2) + "\n")
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        texts = [render(patient, show_all=arguments.all, colour=colour) for patient in patients]
        sys.stdout.write("\n".join(texts))
    return Exit.FAILED if any(patient.outcome is Outcome.BAD for patient in patients) else Exit.OK


def _patients(runtime_dir: Path, seconds: float) -> list[Patient]:
    paths = sockets(runtime_dir)
    first = [(path, ask(path), time.monotonic()) for path in paths]
    if any(answered(status) for _, status, _ in first):
        _wait(seconds)
    patients = []
    for path, before, at in first:
        now = ask(path) if answered(before) else before
        if not answered(now):
            patients.append(Patient(now))
            continue
        looks = Looks(before, now, time.monotonic() - at, _process(path))
        patients.append(Patient(now, examine(checks_of(now.role), looks)))
    return patients


def _wait(seconds: float) -> None:
    """Says on a terminal what it is waiting for."""
    shown, words = sys.stderr.isatty(), f"watching for {seconds:g} s ..."
    if shown:
        sys.stderr.write(words)
        sys.stderr.flush()
    try:
        time.sleep(seconds)
    finally:
        if shown:
            sys.stderr.write(f"\r{' ' * len(words)}\r")
            sys.stderr.flush()


def _process(path: Path) -> Process:
    """Of a daemon that answers, from its metrics: Prometheus sees the same. Nothing is known where they cannot be had."""
    try:
        _, body = fetch(path, "/metrics")
        found = dict(
            line.split(" ", 1) for line in body.decode(errors="replace").splitlines() if line.startswith("process_")
        )
        started = float(found["process_start_time_seconds"])
        fds, most = float(found["process_open_fds"]), float(found["process_max_fds"])
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return Process()
    return Process(int(fds), int(most), max(0.0, time.time() - started))


def render(patient: Patient, *, show_all: bool = False, colour: bool = False) -> str:
    """As text; the first line is the verdict."""
    status, findings = patient.status, patient.findings
    if not findings:
        return clean(f"{_name(status)}: cannot be examined: {status.sentence}") + "\n"
    bad, odd = patient.having(Outcome.BAD), patient.having(Outcome.WARN)
    if bad:
        head = f"{len(bad)} of {len(findings)} checks fail: {', '.join(finding.id for finding in bad)}"
    else:
        head = f"all {len(findings)} checks pass"
    if odd:
        head += f"; worth a look: {', '.join(finding.id for finding in odd)}"
    lines = [clean(f"{_name(status)}: {head}")]
    for finding in (*bad, *odd):
        lines += ["", f"{_word(finding, colour)}{finding.id} ({finding.severity})", *_details(finding)]
    well = patient.having(Outcome.OK)
    if show_all and well:
        lines += ["", *(f"{_word(finding, colour)}{finding.id}: {clean(finding.seen)}" for finding in well)]
    elif well and len(well) < len(findings):
        lines += ["", f"{len(well)} checks pass (--all shows them)"]
    return "\n".join(lines) + "\n"


def _name(status: RoleStatus) -> str:
    of = f" of {status.control_plane}" if status.control_plane else ""
    return f"{status.ifname} ({status.role}{of})"


def _word(finding: Finding, colour: bool) -> str:
    word, pad = finding.outcome.word, " " * (6 - len(finding.outcome.word))
    return (f"\x1b[1;{_COLOURS[finding.outcome]}m{word}\x1b[0m" if colour else word) + pad


def _details(finding: Finding) -> Sequence[str]:
    return (
        f"      seen     {clean(finding.seen)}",
        f"      do       {finding.next}",
        f"      runbook  {finding.runbook}",
    )


def _plain(patient: Patient, seconds: float) -> dict[str, Any]:
    status = patient.status
    return {
        "role": status.role,
        "control_plane": status.control_plane,
        "ifname": status.ifname,
        "outcome": patient.outcome.word,
        "sentence": status.sentence,
        "seconds": seconds,
        "findings": [
            {
                "id": finding.id,
                "outcome": finding.outcome.word,
                "severity": finding.severity,
                "seen": finding.seen,
                "next": finding.next,
                "runbook": finding.runbook,
            }
            for finding in patient.findings
        ],
    }
