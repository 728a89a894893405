"""WireGuard's own key is replaced, and those of all clients with it, while packets flow: two devices, and routes that decide.

    one device --age, command--> two: clients are asked to come over, AT_ONCE a second --all have come--> one, the new one
                                   |                                            (or OVERLAP_S has passed)
                                   +-- the second cannot be made: it goes again, and is tried later

Nothing here is remembered: what there is to do follows from which devices there are, and from who has what at them. A server
that starts anew in the middle finds two devices and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from agent.carrier.api import Command, Configure, ListenConfig
from agent.errors import RhizomeError
from seed_server.adopted import all_on, awaited, host_address
from seed_server.generations import Generations
from seed_server.registry import Client, Registry
from seed_server.server import SeedServer

log = logging.getLogger("rhizome.seed")

LOOK_S = 1.0
#: Clients that are asked to come over in one second.
AT_ONCE = 64
#: Who has not come over by then is moved: its stream ends, and the next one leads to the new device. As long as the longest grant.
OVERLAP_S = 3600.0
#: A stream that broke a moment ago comes again.
AWAY_S = 60.0
#: What is on its way by the old device when the last client has left it.
GRACE_S = 2.0
RETRY_S = 600.0
DEVICE_S = 10.0


def staying(registry: Registry, device: str, now: float) -> list[Client]:
    """Who still has something at this device of ours that packets may go by."""
    return [
        client
        for client in registry.clients.values()
        if client.once is None
        and (leg := client.at(device)) is not None
        and (leg.stream is not None or (leg.stream_lost_at is not None and now < leg.stream_lost_at + AWAY_S))
    ]


def to_ask(registry: Registry, device: str) -> list[str]:
    """Who sends by this device and was not asked yet to come over from it."""
    return [
        key
        for key, client in registry.clients.items()
        if client.once is None and client.device == device and client.stream is not None and not client.asked
    ]


def asked(registry: Registry, keys: list[str]) -> Registry:
    clients = dict(registry.clients)
    for key in keys:
        clients[key] = replace(clients[key], asked=True)
    return replace(registry, clients=MappingProxyType(clients))


def listening(config: ListenConfig, stream: Generations) -> ListenConfig:
    """For the carrier, with the devices that there are."""
    return replace(config, wireguard_port=stream.port_of(stream.current), targets=stream.targets())


class Succession:
    """Looks once a second. `lifetime_s` is the age at which a key is replaced, 0 for never; `order` is a file that asks for it at once;
    `config` is the carrier's, as far as it does not depend on the devices."""

    def __init__(
        self,
        server: SeedServer,
        send: Callable[[Command], None],
        config: ListenConfig,
        *,
        lifetime_s: float,
        order: Path,
    ) -> None:
        self._server = server
        self._stream = server.stream
        self._send = send
        self._config = config
        self._lifetime_s = lifetime_s
        self._order = order
        self._not_before = 0.0
        self._since: float | None = None  # monotonic, when the second device was there
        self._leaving: str | None = None  # a device that has to go
        self.rotations: Counter[str] = Counter()  # by what has become of them: done, forced or failed

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look(time.monotonic(), time.time())
            except (RhizomeError, TimeoutError) as exc:
                self.rotations["failed"] += 1
                words = str(exc) or "the device is not ready in time"
                log.warning("WireGuard's key: %s", words, extra={"event": "rotation.failed"})

    async def look(self, now: float, wall: float) -> None:
        """Do what is due. Raises RhizomeError, TimeoutError."""
        ordered = self._order.exists()
        if ordered:
            with suppress(OSError):
                self._order.unlink()
        stream = self._stream
        if self._leaving is not None:
            await stream.remove(self._leaving)
            self._leaving = None
        if stream.successor is not None:
            if ordered:
                log.info("WireGuard's key is being replaced already", extra={"event": "rotation.running"})
            await self._go_on(stream.current.ifname, now, wall)
        elif ordered or (self._lifetime_s and self.age_s(wall) >= self._lifetime_s and now >= self._not_before):
            await self._begin(now, by="command" if ordered else "age")

    def age_s(self, wall: float) -> float:
        """Of the key in use."""
        return max(0.0, wall - self._stream.current.born)

    def words(self, now: float) -> str:
        """What goes on, empty for nothing."""
        if self._stream.successor is None:
            return ""
        registry, device = self._server.registry, self._stream.current.ifname
        left = len(staying(registry, device, now))
        return f"WireGuard's keys are being replaced: {left} of {len(registry.clients)} clients still have old ones"

    async def _begin(self, now: float, by: str) -> None:
        server, stream = self._server, self._stream
        self._not_before = now + RETRY_S
        plane = await stream.make_successor()
        try:
            await asyncio.wait_for(server.engine.settled(), DEVICE_S)
        except TimeoutError:
            stream.successor = None
            await stream.remove(plane.ifname)
            raise
        self._since = now
        self._send(Configure(listening(self._config, stream)))
        words = f"WireGuard's keys are being replaced, by {by}: {len(server.registry.clients)} clients are asked to come over"
        server.journal.note(logging.INFO, "rotation.begun", words, public_key=str(plane.incarnation.public_key))

    async def _go_on(self, device: str, now: float, wall: float) -> None:
        server, stream = self._server, self._stream
        assert stream.successor is not None
        if self._since is None:  # it was begun by a server before this one
            self._since = now - max(0.0, wall - stream.successor.born)
        if keys := to_ask(server.registry, device)[:AT_ONCE]:
            server.commit(asked(server.registry, keys), ())
            server.tell(keys)
        stay = [client.identity.name for client in staying(server.registry, device, now)]
        stay += dict.fromkeys(host_address(peer) for peer in awaited(server.registry))
        if not stay or now >= self._since + OVERLAP_S:
            await self._end(stay)

    async def _end(self, stay: list[str]) -> None:
        """`stay` names who has not come over: clients, and addresses of those who have not spoken since the server began."""
        server, stream = self._server, self._stream
        old, new = stream.current, stream.successor
        assert new is not None
        # First all routes lead to the new one, then the old one goes.
        server.commit(all_on(server.registry, new.ifname), server.registry.clients)
        await asyncio.wait_for(server.engine.settled(), DEVICE_S)
        await asyncio.sleep(GRACE_S)
        stream.current, stream.successor, self._since = new, None, None
        self._send(Configure(listening(self._config, stream)))
        self._leaving = old.ifname
        with suppress(TimeoutError):
            await asyncio.wait_for(server.engine.settled(), DEVICE_S)
        await stream.remove(old.ifname)
        self._leaving = None
        self.rotations["forced" if stay else "done"] += 1
        key = str(new.incarnation.public_key)
        words = "WireGuard's keys are replaced"
        if stay:
            some = ", ".join(stay[:8]) + (f" and {len(stay) - 8} more" if len(stay) > 8 else "")
            words += f"; {some} did not come over in time, and had to connect anew"
            server.journal.note(logging.WARNING, "rotation.ended", words, public_key=key, count=len(stay))
        else:
            server.journal.note(logging.INFO, "rotation.ended", words, public_key=key, count=0)
