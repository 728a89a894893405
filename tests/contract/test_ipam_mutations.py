"""Every safeguard of the IPAM bites: without it, the state machine finds fault."""

from __future__ import annotations

import pytest

from lab.ipam.mutations import ANYWHERE, IN_KUBERNETES, THE_THREE, Mutation, is_noticed

CASES = [
    *(("memory", mutation) for mutation in ANYWHERE),
    *(("file", mutation) for mutation in THE_THREE),
    *(("kubernetes", mutation) for mutation in IN_KUBERNETES),
]


@pytest.mark.parametrize(("kind", "mutation"), CASES, ids=[f"{kind}-{m.__name__}" for kind, m in CASES])
def test_a_missing_safeguard_is_noticed(kind: str, mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_noticed(mutation, kind, monkeypatch)


def test_with_all_safeguards_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.ipam.mutations.MAX_EXAMPLES", 20)
    assert not is_noticed(lambda _patch: None, "memory", monkeypatch)
