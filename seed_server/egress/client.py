"""The daemon's side of the lines to its egress process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from agent.companion.attach import Companion, connect, stop_companion
from agent.companion.client import CompanionClient
from agent.companion.lines import Drain
from seed_server.egress import lines
from seed_server.egress.api import Configure, EgressConfig, Event, Rejected

#: How long connections of a process that was replaced (another build) or is not wanted any more may go on.
DRAIN_MAX_S = 3600.0

EGRESS = Companion(
    "egress", "seed_server.egress", lambda: lines.build(), lines.decode_event, Drain(DRAIN_MAX_S), retires=True
)


class EgressClient(CompanionClient[Event]):
    """What was said about reachability is lost with the process: say it again after each Ready."""

    def __init__(self, path: Path, config: EgressConfig) -> None:
        super().__init__(EGRESS, path)
        self._config = config

    def _greeting(self) -> Iterable[Configure]:
        return (Configure(self._config),)

    def _refusal(self, event: Event) -> str:
        return event.detail if isinstance(event, Rejected) else ""


async def retire_egress(path: Path) -> None:
    """Let the process at `path`, if there is one, finish its connections and end."""
    line = await connect(EGRESS, path)
    if line is not None:
        await line.retire()


async def stop_egress(path: Path) -> bool:
    """End the process at `path` now. False when none was running. Raises HostError when it will not end."""
    return await stop_companion(replace(EGRESS, stop=Drain(0.0)), path)
