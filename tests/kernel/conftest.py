"""The virtual machine boots when tests begin, and works beside all others in the time that they leave: most of them wait."""

from __future__ import annotations

import pytest

_FILE = "test_in_vm.py"


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        for item in _items(session):
            item.module.begin(item.callspec.params["name"])


def pytest_sessionfinish(session: pytest.Session) -> None:
    for item in _items(session):
        item.module.end()


def _items(session: pytest.Session) -> list[pytest.Function]:
    items = getattr(session, "items", [])  # a session that ends while it collects has none
    return [item for item in items if isinstance(item, pytest.Function) and item.path.name == _FILE]
