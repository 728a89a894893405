"""A daemon's side of the lines: finds the running carrier or starts one, and starts it again when it dies.

async with-less life:  client = await CarrierClient.start(path, config)
                       async for event in client.events(): ...      client.send(command)
                       await client.detach()                        the carrier goes on
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from agent.carrier import ipc
from agent.carrier.api import Configure, DialConfig, Down, Event, ListenConfig, Ready, Rejected, Stop, Up
from agent.companion.attach import Companion, stop_companion
from agent.companion.client import CompanionClient, Displaced

__all__ = ["CarrierClient", "Displaced", "stop_carrier"]

CARRIER = Companion("carrier", "agent.carrier", lambda: ipc.build(), ipc.decode_event, Stop())


class CarrierClient(CompanionClient[Event]):
    """When the carrier dies, each of its streams is Down, and a new process follows with Ready and Up."""

    def __init__(self, path: Path, config: DialConfig | ListenConfig) -> None:
        super().__init__(CARRIER, path)
        self._config = config
        self._up: set[int] = set()
        self._relay_port = 0

    @classmethod
    async def start(cls, path: Path, config: DialConfig | ListenConfig) -> CarrierClient:
        """Attach to the carrier at `path`, which is started when there is none. Raises HostError like `attach`."""
        return await cls(path, config).attach()

    def send(self, command: object) -> None:
        """Say it to the carrier. What is said while there is none is lost, except for a Configure."""
        if isinstance(command, Configure):
            self._config = command.config
            self._relay_port = 0
        super().send(command)

    def _greeting(self) -> Iterable[Configure]:
        config = self._config
        if isinstance(config, DialConfig) and not config.relay_port and self._relay_port:
            # WireGuard's peer points there already.
            config = replace(config, relay_port=self._relay_port)
        return (Configure(config),)

    def _refusal(self, event: Event) -> str:
        return event.detail if isinstance(event, Rejected) else ""

    def _on_event(self, event: Event) -> None:
        match event:
            case Up(stream=number):
                self._up.add(number)
            case Down(stream=number):
                self._up.discard(number)
            case Ready(relay_port=port):
                self._relay_port = port

    def _on_lost(self) -> Iterable[Event]:
        gone, self._up = sorted(self._up), set()
        return [Down(number, "carrier", "the carrier process ended") for number in gone]


async def stop_carrier(path: Path) -> bool:
    """End the carrier at `path` and remove its files. False when none was running. Raises HostError when it will not end."""
    return await stop_companion(CARRIER, path)
