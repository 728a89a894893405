"""The IPAM's promises: a state machine against a plain model (lab.ipam.machine).

The last test takes a safeguard away and demands that the machine notices; tests/contract/test_ipam_mutations.py takes many.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

import ipam.stores.file
from lab.ipam.machine import Machine
from lab.ipam.mutations import THE_THREE, Mutation, is_noticed

QUICK = settings(max_examples=16, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def test_ipam_keeps_its_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipam.stores.file, "SPARE_LINES", 6)  # so that the log is rewritten now and then
    run_state_machine_as_test(Machine, settings=QUICK)


@pytest.mark.parametrize("mutation", THE_THREE, ids=lambda mutation: mutation.__name__)
def test_a_missing_safeguard_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_noticed(mutation, "memory", monkeypatch)
