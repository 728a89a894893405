#!/usr/bin/env python3
"""Write docs/configuration.md from the settings tables. A test fails when the page is stale."""

from __future__ import annotations

from pathlib import Path

import agent.sidecar.settings
import seed_server.settings
import shoot_client.settings
from agent.cli.markdown import page

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

if __name__ == "__main__":
    PAGE.write_text(
        page([seed_server.settings.Settings, shoot_client.settings.Settings, agent.sidecar.settings.Settings]),
        encoding="utf-8",
    )
