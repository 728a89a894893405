"""The direct path of a client: a second device, whose packets go to the server by UDP and not by the stream.

It has a key, a canary and an epoch of its own. Which of the two devices is used is a route, and never an endpoint: an endpoint
follows whoever spoke last. The device is made when a server first offers the path, and then stays.
"""

from __future__ import annotations

import logging
import time

from agent.canary import Responder
from agent.client.role import DirectView
from agent.dataplane import DataPlane
from agent.engine import Pass
from agent.errors import HostError
from agent.host import SetPeer
from agent.ladder import Ladder, Path
from agent.messages import Direct, Grant
from agent.model import Endpoint, IPAddress, PeerStatus

log = logging.getLogger("rhizome.client.direct")

TICK_S = 0.25
#: An endpoint that has not answered for so long makes room for the next one.
ENDPOINT_PATIENCE_S = 8.0
#: While the path works its endpoint is WireGuard's own affair: it follows a server whose address changes.
SETTLED_S = 5.0


class DirectPath:
    """Mutable state of the path. `tick` says when something has changed."""

    def __init__(self, plane: DataPlane, mtu_bytes: int, now: float) -> None:
        self.plane = plane
        self.mtu_bytes = mtu_bytes
        self.responder = Responder(time.monotonic)
        self.status: PeerStatus | None = None
        adopted = bool(plane.adopted_routes)
        self.ladder = Ladder(Path.DIRECT if adopted else Path.STREAM, since=now)
        self._started = now if adopted else None  # the path of an earlier run is taken at its word for a moment
        self._wanted = plane.adopted is not None
        self._listening_on: IPAddress | None = None
        self._endpoint = 0
        self._endpoint_since = now

    @property
    def in_use(self) -> bool:
        return self.ladder.path is Path.DIRECT

    def age_s(self, now: float) -> float | None:
        """Since a canary crossed on this path, in both directions."""
        ages = [self.responder.age_s(now), None if self._started is None else now - self._started]
        return min((age for age in ages if age is not None), default=None)

    def view(self, grant: Grant | None, now: float, listen_port: int | None = None) -> DirectView | None:
        """What the role has to know to make the device, None while there is to be none. `listen_port` None: any port."""
        direct = grant.direct if grant is not None else None
        self._wanted = self._wanted or direct is not None
        if not self._wanted:
            return None
        device = self.plane.device(listen_port=listen_port, mtu_bytes=self.mtu_bytes)
        return DirectView(device, direct, self._where(direct, now), in_use=self.in_use)

    def _where(self, direct: Direct | None, now: float) -> Endpoint | None:
        age_s = self.responder.age_s(now)
        if direct is None or not direct.endpoints or (age_s is not None and age_s < SETTLED_S):
            return None
        return direct.endpoints[self._endpoint % len(direct.endpoints)]

    def on_pass(self, done: Pass, grant: Grant | None) -> bool:
        """The engine has looked: keep the canary open, start a handshake where there is a new peer. True: look again."""
        again = self.plane.is_new_incarnation(done)
        if grant is None or grant.direct is None or not grant.addresses:
            return again
        made = self.plane.ifname in done.created
        if done.error is None and (made or self._listening_on != grant.addresses[0]):
            self._listening_on = None
            if self.responder.open(self.plane.ifname, grant.addresses[0]):
                self._listening_on = grant.addresses[0]
                self.poke(grant)
        elif any(isinstance(step, SetPeer) and step.ifname == self.plane.ifname for step in done.steps):
            self.poke(grant)
        return again

    def poke(self, grant: Grant) -> None:
        """One datagram to the server, for the handshake's sake."""
        if grant.direct is not None and grant.addresses:
            servers = [a for a in grant.direct.servers if a.version == grant.addresses[0].version]
            for server in servers[:1]:
                self.responder.poke(server)

    def tick(self, grant: Grant | None, stream_age_s: float | None, now: float) -> bool:
        """Look which path is the better one. True when the host has to change."""
        offered = grant is not None and grant.direct is not None
        before = self.ladder
        self.ladder = before.step(stream_age_s, self.age_s(now) if offered else None, now)
        if not offered and self.in_use:  # the server has taken the offer back
            self.ladder = Ladder(since=now, moves=self.ladder.moves + 1)
        if self.ladder.path is not before.path:
            log.info(
                "packets go by the %s path now",
                self.ladder.path.value,
                extra={"event": "path.changed", "path": self.ladder.path.value},
            )
        return self.ladder.path is not before.path or self._next_endpoint(grant, now)

    def _next_endpoint(self, grant: Grant | None, now: float) -> bool:
        """Another address of the server's, when this one has not answered for a while; a new handshake in any case."""
        age_s = self.responder.age_s(now)
        if grant is None or grant.direct is None or (age_s is not None and age_s < ENDPOINT_PATIENCE_S):
            self._endpoint_since = now
            return False
        if now - self._endpoint_since < ENDPOINT_PATIENCE_S:
            return False
        self._endpoint_since = now
        self._endpoint += 1
        self.poke(grant)
        return len(grant.direct.endpoints) > 1

    async def look(self, grant: Grant | None) -> None:
        """Read WireGuard's counters."""
        key = grant.direct.public_key if grant is not None and grant.direct is not None else None
        try:
            device = await self.plane.read() if self._wanted else None
        except HostError as exc:
            log.debug("cannot read the device: %s", exc, extra={"event": "device.unreadable"})
            return
        statuses = device.statuses if device is not None else ()
        self.status = next((s for s in statuses if s.public_key == key), None)
