"""The canary: a small UDP question from the server to each client, inside the tunnel, and its answer.

"Ready" rests on it: a canary came back a moment ago, so packets really cross, both ways, encrypted. The server asks, because
nothing may be asked in the other direction (the seed denies it); each question says which answer arrived last, so the
client learns that its answers arrive too. A client that is not asked when it should be says by itself that it lives: then only the way to it
is silent, and it is not dead. What follows from answers that do not come is for agent.pulse to say. One socket on each side, bound
to the tunnel device.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.model import MTU_MAX_BYTES, IPAddress
from agent.pulse import OVERDUE_S, SUSPECT_INTERVAL_S, Pulse, overdue_s

log = logging.getLogger("rhizome.canary")

PORT = 52485
TICK_S = SUSPECT_INTERVAL_S  # how often the prober looks whom to ask
#: So many questions in one tick may be of those that are asked more often than usual. Thousands of clients that are late together
#: are late because of us, or of what lies between: asking all of them ten times as often would be the end of it.
HURRIED_MAX = 100
#: And so many of all others, where that is enough for everybody with PACE to spare. After a moment without time for it, thousands
#: would be due in one tick, and from then on always: a burst that makes its own answers late.
AT_ONCE, PACE = 100, 1.5
REST_MAX_S = 0.5  # with thousands of targets, one that is well is not looked at in every tick
EAGER_S = 0.2  # how often a target is asked that has not been heard of yet
EAGER = 50  # so many questions long; a client that stays silent is asked like all others
ANSWER_MAX_S = 3.0  # an older question's answer proves nothing about now
REMEMBERED = 16  # questions and answers that a late message may still be about

_FORMAT = struct.Struct("!4sII")  # magic, number of this question, number of the last question whose answer arrived
_ASK, _ANSWER, _ALIVE = b"rzC?", b"rzC!", b"rzC."

#: A question is late after so many times the usual pause, which is never less than USUAL_MIN_S; then a sign of life goes out every
#: ALIVE_EVERY_S, so many times: the server's patience ends sooner.
LATE, USUAL_MIN_S, ALIVE_EVERY_S, ALIVE_TIMES = 1.5, 0.5, 0.25, 120
FADES = 0.7


@dataclass(slots=True)
class Target:
    """What the server knows of one client's canary. Times are monotonic seconds, None for never."""

    pulse: Pulse
    asked: int = 0
    answered: int = 0
    asked_at: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # newest last
    rtt_s: float | None = None
    rests_until: float = 0.0  # it need not be looked at before

    @property
    def answered_at(self) -> float | None:
        return self.pulse.answered_at

    def is_due(self, now: float) -> bool:
        """Whether to ask it, if there is time for all."""
        return self.is_due_anyway(now) or self.is_due_in_a_hurry(now)

    def is_due_anyway(self, now: float) -> bool:
        """As usual."""
        return not self.asked_at or now - self.asked_at[-1] + TICK_S / 2 >= self.pulse.interval_s

    def is_due_in_a_hurry(self, now: float) -> bool:
        """Two answers make both sides know that packets cross, and until then there is no time to lose; nor is there with a
        suspect."""
        silent_s = now - self.asked_at[-1] + TICK_S / 2
        if self.pulse.missing == 0:
            return self.answered < 2 and silent_s >= EAGER_S
        if self.answered < 2 and self.asked < EAGER:
            return silent_s >= EAGER_S
        return silent_s >= SUSPECT_INTERVAL_S and self.pulse.is_suspect(now, self.rtt_s)

    def age_s(self, now: float) -> float | None:
        return None if self.pulse.answered_at is None else now - self.pulse.answered_at


class _Port:
    """A non-blocking UDP socket bound to a tunnel address and device; closed and reopened as the device comes and goes."""

    def __init__(self, on_datagram: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._on_datagram = on_datagram
        self._socket: socket.socket | None = None

    def open(self, ifname: str, address: IPAddress, port: int) -> bool:
        """False when the device or its address is not there (yet)."""
        self.close()
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ifname.encode())
            sock.bind((str(address), port))
        except OSError as exc:
            log.debug("canary cannot bind to %s on %s: %s", address, ifname, exc, extra={"event": "canary.unbound"})
            sock.close()
            return False
        asyncio.get_running_loop().add_reader(sock, self._readable, sock)
        self._socket = sock
        return True

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def send(self, payload: bytes, to: tuple[str, int]) -> None:
        """Lost like any datagram when it cannot be sent: no session yet, device gone, queue full."""
        if self._socket is not None:
            try:
                self._socket.sendto(payload, to)
            except OSError as exc:
                log.debug("canary not sent: %s", exc, extra={"event": "canary.unsent"})

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(256):  # bounded work for one turn of the loop
            try:
                payload, sender = sock.recvfrom(MTU_MAX_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:  # an ICMP error for an earlier datagram
                log.debug("canary socket: %s", exc, extra={"event": "canary.error"})
                return
            self._on_datagram(payload, (sender[0], sender[1]))


class Prober:
    """Server side: asks every client's tunnel address that is due, and notes what comes back. Call `ask` every TICK_S.

    `size_bytes` is the length of a question, and of its answer: as long as a packet may be, where that is in doubt.
    """

    def __init__(self, clock: Callable[[], float], size_bytes: int = 0) -> None:
        self._clock = clock
        self._padding = bytes(max(0, size_bytes - _FORMAT.size))
        self._port = _Port(self._answered)
        self._suspects = 0
        self._waiting_since: float | None = None  # for an answer that comes in time, from whomever
        self._stalled_at = -math.inf
        self.targets: dict[str, Target] = {}  # by tunnel address as text

    def open(self, ifname: str, address: IPAddress) -> bool:
        return self._port.open(ifname, address, 0)

    @property
    def is_open(self) -> bool:
        return self._port.is_open

    @property
    def stalled(self) -> bool:
        """Of many who are asked, not one answers in time. Thousands of paths are not bad at once; we are, or what lies between."""
        since = self._waiting_since
        return len(self.targets) > HURRIED_MAX and since is not None and self._clock() - since > OVERDUE_S

    def watch(self, address: str, pulse: Pulse) -> None:
        """Ask this address too from now on; nothing changes for one that is asked already on behalf of this pulse."""
        known = self.targets.get(address)
        if known is None or known.pulse is not pulse:
            self.targets[address] = Target(pulse)

    def forget(self, address: str) -> None:
        self.targets.pop(address, None)

    def ask(self) -> None:
        now = self._clock()
        due: list[tuple[str, Target]] = []
        hurried: list[tuple[str, Target]] = []
        per_s = 0.0
        for address, target in self.targets.items():
            per_s += 1 / target.pulse.interval_s
            if now < target.rests_until:
                continue
            if target.is_due_anyway(now):
                due.append((address, target))
            elif target.is_due_in_a_hurry(now):
                hurried.append((address, target))
            elif not target.pulse.missing and target.answered >= 2:
                target.rests_until = min(now + REST_MAX_S, target.asked_at[-1] + target.pulse.interval_s - TICK_S)
        self._suspects = len(hurried)
        if self.stalled:
            self._stalled_at = now
        for some, most in ((due, max(AT_ONCE, round(PACE * per_s * TICK_S))), (hurried, HURRIED_MAX)):
            if len(some) > most:
                some.sort(key=_first)
            for address, target in some[:most]:
                self._question(address, target, now)

    def _question(self, address: str, target: Target, now: float) -> None:
        if self._waiting_since is None:
            self._waiting_since = now
        target.asked += 1
        target.asked_at.append(now)
        target.pulse.asked(now)
        self._port.send(_FORMAT.pack(_ASK, target.asked, target.answered) + self._padding, (address, PORT))

    def close(self) -> None:
        self._port.close()

    def _answered(self, payload: bytes, sender: tuple[str, int]) -> None:
        target = self.targets.get(sender[0])
        if target is None or len(payload) != _FORMAT.size + len(self._padding):
            return
        magic, number, _ = _FORMAT.unpack_from(payload)
        late, now = target.asked - number, self._clock()
        if magic == _ALIVE:
            target.pulse.heard(now)
        if magic == _ANSWER and number > target.answered and 0 <= late < len(target.asked_at):
            rtt_s = now - target.asked_at[-1 - late]
            if self.stalled:
                self._stalled_at = now
            alone = self._suspects <= HURRIED_MAX and self._stalled_at < target.pulse.missing_since
            if rtt_s < overdue_s(target.rtt_s):
                self._waiting_since = None
            if rtt_s < ANSWER_MAX_S:
                target.answered, target.rtt_s = number, rtt_s
                target.pulse.answered(now, alone=alone)


def _first(asked: tuple[str, Target]) -> tuple[float, float]:
    """Those first on whom others rely, then those who have waited longest."""
    _, target = asked
    return target.pulse.interval_s, target.asked_at[-1] if target.asked_at else 0.0


class Responder:
    """Client side: answers, and notes when it was last asked and when an answer is known to have arrived."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._port = _Port(self._asked)
        self._answers: deque[int] = deque(maxlen=REMEMBERED)  # numbers of the last questions that we answered
        self._usual_s = 0.0  # between two questions
        self._asker: tuple[str, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.asked_at: float | None = None
        self.confirmed_at: float | None = None

    def open(self, ifname: str, address: IPAddress) -> bool:
        return self._port.open(ifname, address, PORT)

    @property
    def is_open(self) -> bool:
        return self._port.is_open

    def poke(self, server: IPAddress) -> None:
        """One datagram towards the server, which ignores it: WireGuard there learns at once which stream we are on now,
        and here it starts a handshake if there is no session."""
        self._port.send(_FORMAT.pack(_ANSWER, 0, 0), (str(server), PORT))

    def age_s(self, now: float) -> float | None:
        """Since a canary crossed in both directions; None for never."""
        return None if self.confirmed_at is None else now - self.confirmed_at

    def close(self) -> None:
        self._rest()
        self._port.close()

    def _asked(self, payload: bytes, sender: tuple[str, int]) -> None:
        if len(payload) < _FORMAT.size:
            return
        magic, number, arrived = _FORMAT.unpack_from(payload)
        if magic != _ASK:
            return
        now = self._clock()
        pause_s = now - self.asked_at if self.asked_at is not None else 0.0
        self._usual_s = max(pause_s, FADES * self._usual_s)  # some questions in a hurry make no new habit
        self.asked_at, self._asker = now, sender
        if arrived and arrived in self._answers:
            self.confirmed_at = self.asked_at
        self._answers.append(number)
        self._port.send(_FORMAT.pack(_ANSWER, number, 0) + bytes(len(payload) - _FORMAT.size), sender)
        self._live_on(LATE * max(USUAL_MIN_S, self._usual_s), ALIVE_TIMES)

    def _live_on(self, delay_s: float, times: int) -> None:
        """Unless we are asked before, say so many times that we live."""
        self._rest()
        if times:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._say_alive, times)

    def _say_alive(self, times: int) -> None:
        if self._asker is not None:
            self._port.send(_FORMAT.pack(_ALIVE, 0, 0), self._asker)
        self._live_on(ALIVE_EVERY_S, times - 1)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
