"""docs/threat-model.md: every control has a test, and each named test is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/threat-model.md").read_text()
NAMED = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", PAGE)
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| threat |")]


def test_every_threat_has_a_control_and_a_test() -> None:
    assert len(ROWS) >= 35
    for row in ROWS:
        threat, control, tests = (cell.strip() for cell in row.strip("|").split(" | "))
        assert threat and control, row
        assert re.fullmatch(r"(`tests/[a-z_/]+\.py::test_[a-z0-9_]+`(, )?)+", tests), row


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_each_named_test_is_there(file: str) -> None:
    there = set(re.findall(r"^(?:async )?def (test_\w+)\(", (ROOT / file).read_text(), re.MULTILINE))
    assert {name for other, name in NAMED if other == file} <= there
