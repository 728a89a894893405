"""The doctor's checks and the charts' alerts: the same ids, severities and limits, and a page that begins with the same step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.checks import CLIENT, SEED_SERVER, checks_of
from agent.doctor import Check, Outcome, examine
from lab.helm import ROOT, SEED, SHOOT
from tests.doctor_cases import MAKERS, ROLES, STATUS, Case, cases, rules, still

CASES = [case for chart in ROLES for case in cases(chart)]


def test_each_alert_has_a_check_and_cases_on_both_sides_of_its_limit() -> None:
    for chart, role in ROLES.items():
        alerts = {rule["alert"]: rule["labels"]["severity"] for rule in rules(chart)}
        assert {check.id: check.severity for check in checks_of(role)} == alerts
    ids = {check.id for check in (*SEED_SERVER, *CLIENT)}
    assert (
        ids == set(MAKERS) == {case.id for case in CASES if case.fires} == {case.id for case in CASES if not case.fires}
    )


@pytest.mark.parametrize("check", [*SEED_SERVER, *CLIENT], ids=lambda check: check.id)
def test_a_page_has_the_doctors_command_and_begins_with_its_step(check: Check) -> None:
    page = (ROOT / f"docs/runbooks/{check.id}.md").read_text()
    assert "-- rhizome-agent doctor" in page
    assert " ".join(page.split("**Do.** ")[1].split()).startswith(check.next)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_check_fails_just_beyond_the_alerts_limit_and_not_within(case: Case) -> None:
    (found,) = examine([case.check], case.looks)
    assert found.id == case.id and found.seen and found.runbook == f"docs/runbooks/{case.id}.md"
    failing = Outcome.WARN if found.severity == "info" else Outcome.BAD
    assert found.outcome is (failing if case.fires else Outcome.OK), found.seen


@pytest.mark.parametrize("chart", [SEED, SHOOT])
def test_where_all_is_well_all_checks_pass(chart: str) -> None:
    found = examine(checks_of(ROLES[chart]), still(STATUS[chart]))
    assert {finding.outcome for finding in found} == {Outcome.OK}


def test_a_sidecar_has_a_clients_checks() -> None:
    sidecar = replace(STATUS[SHOOT], role="sidecar")
    assert checks_of(sidecar.role) == checks_of(ROLES[SHOOT])
    assert {finding.outcome for finding in examine(checks_of(sidecar.role), still(sidecar))} == {Outcome.OK}
