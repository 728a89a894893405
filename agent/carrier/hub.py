"""The server's streams by identity and WireGuard device: one seat each, with one UDP port towards it, and the newest stream in it.

The port stays while streams come and go, so WireGuard's endpoint for a peer stays right and its next packet goes into
the new stream at once. A newcomer takes the seat when its first bytes behind the 101 have arrived, not before: then its
client has the 101 and uses it. The stream that had the seat drains.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass, field, replace
from functools import partial

from agent.carrier import tls
from agent.carrier.dial import Link
from agent.carrier.port import UdpPort
from agent.carrier.stats import RelayStats
from agent.carrier.streams import Streams
from agent.errors import HostError
from agent.run import spawn

log = logging.getLogger("rhizome.carrier.hub")

#: A seat without a stream is kept for as long as a WireGuard session lives (REJECT_AFTER_TIME, whitepaper section 6.1).
SEAT_KEPT_S = 180.0
#: A newcomer that says nothing takes the seat after this: above a keepalive interval, which is 25 s by custom.
PROOF_TIMEOUT_S = 30.0


#: Identity, and the UDP port of the WireGuard device.
_Place = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Seat:
    port: UdpPort
    stream: int | None = None
    newcomer: asyncio.Task[None] | None = None
    vacated: asyncio.Event = field(default_factory=asyncio.Event)
    expiry: asyncio.TimerHandle | None = None


class Hub:
    """`max_streams` bounds identities with a stream; an identity that has one may always replace it, and have one to another
    device beside it."""

    def __init__(self, streams: Streams, max_streams: int) -> None:
        self.max_streams = max_streams
        self._streams = streams
        self._seats: dict[_Place, _Seat] = {}
        self._ended = RelayStats()

    def prepare(self, identity: str, port: int) -> None:
        """Have a seat ready at the device with this UDP port, before a 101 promises it. Raises HostError with the reason to give to
        the client."""
        place = identity, port
        seat = self._seats.get(place)
        if len(self._streams) >= self.max_streams and self._is_full_for(identity):
            raise HostError(f"the server has {self.max_streams} streams, which is its limit")
        if seat is None:
            seat = self._seats[place] = _Seat(UdpPort(port))
        if seat.stream is None:
            self._expire_later(place, seat)

    def _is_full_for(self, identity: str) -> bool:
        holders = {holder for (holder, _), seat in self._seats.items() if seat.stream is not None}
        return identity not in holders and len(holders) >= self.max_streams

    async def take(self, link: Link) -> None:
        """Seat a link whose 101 was sent. Closes it when it ends or is overtaken before it has proved itself."""
        place = link.identity, link.port
        seat = self._seats.get(place)
        try:
            if seat is None:
                raise ConnectionResetError("the server is being reconfigured")
            link = await self._proven(seat, link)
        except BaseException:
            link.stream.close()
            raise
        if seat.expiry is not None:
            seat.expiry.cancel()
        old, seat.stream = seat.stream, self._streams.open(link, seat.port, on_end=partial(self._on_end, place))
        if old is not None:
            fields = {"event": "stream.replaced", "stream": old, "identity": link.identity}
            log.info("stream %d is replaced by stream %d from %s", old, seat.stream, link.peer, extra=fields)
            self._streams.retire(old)

    async def _proven(self, seat: _Seat, link: Link) -> Link:
        """The link with its first bytes read, if the seat is taken. Raises OSError when it ended."""
        if seat.newcomer is not None:
            seat.newcomer.cancel()
        if seat.stream is None or link.early:
            return link
        seat.newcomer = task = asyncio.current_task()
        seat.vacated.clear()
        vacated = spawn(seat.vacated.wait(), name="seat.vacated")
        first = spawn(tls.readable(link.stream), name="seat.proof")
        try:
            await asyncio.wait((vacated, first), timeout=PROOF_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            vacated.cancel()
            first.cancel()
            await asyncio.wait((vacated, first))
            if seat.newcomer is task:
                seat.newcomer = None
        return _read_ahead(link)

    def _on_end(self, place: _Place, number: int, _lived_s: float) -> None:
        seat = self._seats.get(place)
        if seat is not None and seat.stream == number:
            seat.stream = None
            seat.vacated.set()
            self._expire_later(place, seat)

    def _expire_later(self, place: _Place, seat: _Seat) -> None:
        if seat.expiry is not None:
            seat.expiry.cancel()
        seat.expiry = asyncio.get_running_loop().call_later(SEAT_KEPT_S, self._expire, place)

    def _expire(self, place: _Place) -> None:
        seat = self._seats.pop(place)
        self._ended += seat.port.stats()
        seat.port.close()

    def port_stats(self) -> RelayStats:
        return sum((seat.port.stats() for seat in self._seats.values()), self._ended)

    def close(self, reason: str, detail: str, keep: frozenset[int] = frozenset()) -> None:
        """End the streams and give back their ports, but for those to the WireGuard ports in `keep`."""
        for number in self._streams:
            up = self._streams.up(number)
            if up is not None and up.wireguard_port not in keep:
                self._streams.close(number, reason, detail)
        for place, seat in tuple(self._seats.items()):
            if place[1] in keep:
                continue
            if seat.newcomer is not None:
                seat.newcomer.cancel()
            if seat.expiry is not None:
                seat.expiry.cancel()
            self._expire(place)


def _read_ahead(link: Link) -> Link:
    """What has come in so far becomes `early`. Raises OSError when the link has ended."""
    try:
        first = link.stream.recv(16 * 1024)
    except ssl.SSLWantReadError:
        return link
    if not first:
        raise ConnectionResetError("it closed before it used its stream")
    return replace(link, early=first)
