"""docs/configuration.md is what the tables say today."""

from __future__ import annotations

from pathlib import Path

import agent.sidecar.settings
import seed_server.settings
import shoot_client.settings
from agent.cli.markdown import page
from agent.settings import specs

ROLES = [seed_server.settings.Settings, shoot_client.settings.Settings, agent.sidecar.settings.Settings]
PAGE = Path(__file__).parents[4] / "docs" / "configuration.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(ROLES), "run: python scripts/configuration.py"


def test_every_setting_is_on_the_page_in_its_three_spellings() -> None:
    text = page(ROLES)
    for role in ROLES:
        for spec in specs(role):
            assert f"| `{spec.name}`<br>`{spec.flag}`<br>`{spec.env}` |" in text


def test_every_row_has_as_many_cells_as_its_head() -> None:
    width = 0
    for line in page(ROLES).splitlines():
        cells = line.replace("\\|", "").count("|")
        if set(line) == {"|", "-"}:
            width = cells
        elif line.startswith("| `"):
            assert cells == width, line
