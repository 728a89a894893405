"""How a companion is found, started and let go of; with real processes in tests/netns/test_carrier_process.py."""

import asyncio
import logging
from pathlib import Path

import pytest

from agent import logs
from agent.companion import attach
from agent.companion.attach import Companion, connect, stop_companion
from agent.companion.lines import Displaced, Hello, decode, vocabulary

_KINDS = vocabulary(Hello | Displaced)
KIND = Companion(
    "helper", "no.such.module", lambda: "mine", lambda line: decode(line, _KINDS), Displaced(), retires=True
)


@pytest.mark.parametrize("text", [True, False])
def test_log_settings_are_passed_on(text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logs.TextFormatter() if text else logging.Formatter())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("rhizome"), "level", logging.WARNING)
    assert attach.log_arguments() == ["--log-format", "text" if text else "json", "--log-level", "warning"]


async def test_who_retires_is_waited_for_only_until_it_lets_go_of_the_line(tmp_path: Path) -> None:
    """It is this test's own process: by signals it would be the end of it."""
    told: list[bytes] = []

    async def helper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.readline())
        writer.close()

    async with await asyncio.start_unix_server(helper, tmp_path / "x.helper"):
        line = await connect(KIND, tmp_path / "x.helper")
        assert line is not None
        await line.retire()
    assert told == [b'{"displaced":{}}\n']


def test_stopping_what_does_not_run_removes_its_leftovers(tmp_path: Path) -> None:
    (tmp_path / "x.helper.lock").touch()
    assert not asyncio.run(stop_companion(KIND, tmp_path / "x.helper"))
    assert not list(tmp_path.iterdir())
