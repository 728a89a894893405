#!/usr/bin/env python3
"""Write docs/configuration.md and docs/audit.md from the tables in the code. Tests fail when a page is stale."""

from __future__ import annotations

from pathlib import Path

import agent.sidecar.settings
import seed_server.audit
import seed_server.settings
import shoot_client.settings
from agent.cli.markdown import page

DOCS = Path(__file__).parent.parent / "docs"

if __name__ == "__main__":
    (DOCS / "configuration.md").write_text(
        page([seed_server.settings.Settings, shoot_client.settings.Settings, agent.sidecar.settings.Settings]),
        encoding="utf-8",
    )
    (DOCS / "audit.md").write_text(seed_server.audit.markdown(), encoding="utf-8")
