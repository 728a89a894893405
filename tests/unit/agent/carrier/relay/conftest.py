"""A relay over real sockets, with what it told its owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from agent.carrier import capsule
from agent.carrier.port import UdpPort
from agent.carrier.relay import Relay
from agent.carrier.window import Window
from tests.unit.agent.carrier.conftest import FakeWireGuard, Streams


def datagram(payload: bytes) -> bytes:
    return capsule.head(len(payload)) + payload


class Running:
    """A relay, its UDP port, and what it told its owner."""

    def __init__(
        self,
        streams: Streams,
        wireguard: FakeWireGuard,
        *,
        early: bytes = b"",
        extensions: bool = True,
        port: UdpPort | None = None,
    ) -> None:
        stream, self.peer = streams()
        self.port = port or UdpPort(wireguard.port)
        self.controls: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.worn = 0
        self.relay = Relay(
            stream,
            self.port,
            early=early,
            extensions=extensions,
            on_control=self.controls.append,
            on_closed=lambda reason, detail: self.ends.append((reason, detail)),
            on_worn=self._on_worn,
        )
        self.relay.start()

    async def until_received(self, count: int) -> None:
        await self.peer.until(lambda: self.relay.stats().rx_packets >= count)

    @property
    def window(self) -> Window:
        """What may be on its way; only a stream with extensions has one."""
        assert self.relay._sender.window is not None
        return self.relay._sender.window

    def _on_worn(self) -> None:
        self.worn += 1

    async def end(self, timeout_s: float = 5.0) -> str:
        async with asyncio.timeout(timeout_s):
            while not self.ends:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert len(self.ends) == 1
        return self.ends[0][0]


class Start(Protocol):
    def __call__(self, *, early: bytes = ..., extensions: bool = ..., port: UdpPort | None = ...) -> Running: ...


@pytest.fixture
async def start(streams: Streams, wireguard: FakeWireGuard) -> AsyncIterator[Start]:
    started: list[Running] = []

    def make(*, early: bytes = b"", extensions: bool = True, port: UdpPort | None = None) -> Running:
        running = Running(streams, wireguard, early=early, extensions=extensions, port=port)
        started.append(running)
        return running

    yield make
    for running in started:
        running.relay.close("test")
        running.port.close()
    await asyncio.sleep(0)
