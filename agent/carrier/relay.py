"""Pumps one established TLS stream and WireGuard's UDP port into each other.

Everything happens in callbacks of the event loop, each of bounded length, so that no stream holds up another. An idle stream
owns one timer and no buffer.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agent.carrier.capsule import Ack, Control, Ping, Pong, Run
from agent.carrier.liveness import PASSIVE_QUIET_S, QUESTIONS, QUIET_S, Lifetime, Liveness, Verdict
from agent.carrier.outbox import ACK_DELAY_S, Outbox
from agent.carrier.port import UdpPort
from agent.carrier.queue import Drop
from agent.carrier.receiver import StreamReceiver
from agent.carrier.sender import Blocked, StreamSender
from agent.carrier.sockets import USER_TIMEOUT_MS, linger, tune_tcp
from agent.carrier.stats import RelayStats
from agent.carrier.window import Window
from agent.errors import BadMessage, Unsupported

#: Capsules that one stream may bring per turn of the loop; half of what WireGuard's own queue takes (1,024 packets).
CAPSULES_PER_TURN = 512
#: How often the bytes moved are compared with what a stream should carry, where no ping keeps the timer going.
LIFETIME_CHECK_S = 60.0


@dataclass(frozen=True, slots=True)
class _Hooks:
    control: Callable[[str], None]
    closed: Callable[[str, str], None]
    worn: Callable[[], None] | None


class Relay:
    """One stream whose upgrade was answered with 101. Everything happens in callbacks of the running loop; no task.

    `stream`: handshake done, non-blocking; the relay owns and closes it. `early`: bytes that were read behind the HTTP
    head. `extensions`: the peer said Rhizome-Version; without it only DATAGRAM capsules are sent (no window, no pings,
    no control). `on_control(text)`: a control message arrived; how many a peer may send is the caller's business, who may
    call `close` from inside. `on_closed(reason, detail)`: called exactly once, from the loop and never from inside a call of
    yours; reason is one of eof, reset, tls, dead, malformed, flood, retired or what `close` was given. `on_worn()`: called
    once when the stream should be replaced (after about an hour or 100 GB; RFC 8446 section 5.5).
    """

    __slots__ = (
        "_ack_timer",
        "_again",
        "_closed",
        "_hooks",
        "_lifetime",
        "_liveness",
        "_loop",
        "_outbox",
        "_port",
        "_receiver",
        "_sender",
        "_stream",
        "_timer",
        "_watching",
    )

    def __init__(
        self,
        stream: ssl.SSLSocket,
        port: UdpPort,
        *,
        early: bytes = b"",
        extensions: bool,
        on_control: Callable[[str], None],
        on_closed: Callable[[str, str], None],
        on_worn: Callable[[], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._stream = stream
        self._port = port
        self._hooks = _Hooks(on_control, on_closed, on_worn)
        self._outbox = Outbox()
        self._sender = StreamSender(stream, window=Window() if extensions else None)
        self._receiver = StreamReceiver(stream, extensions=extensions, early=early)
        #: None: the peer cannot be asked; TCP itself has to notice that it is gone.
        quiet_s = PASSIVE_QUIET_S if stream.server_side else QUIET_S
        self._liveness = Liveness(now, quiet_s=quiet_s) if extensions else None
        #: None: nobody wants to know, or it has been said.
        self._lifetime = Lifetime(now, random.random()) if on_worn else None
        self._timer: asyncio.TimerHandle | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self._again = False  # whether the next turn is scheduled already
        self._watching = False  # whether the stream is watched for room to write
        self._closed = False

    def start(self) -> None:
        """Begin to pump, and become the port's active relay: from now on WireGuard's packets go here."""
        tune_tcp(self._stream)
        self._loop.add_reader(self._stream, self._on_readable)
        now = self._loop.time()
        if self._liveness is not None:
            # Before any traffic: how long a round trip takes on the empty path.
            self._liveness.ask(now)
            self._ping()
        self._schedule(now)
        self._port.activate(self)
        if self._receiver.more:
            self._take_another_turn()

    def send_control(self, text: str) -> None:
        """Queue one control message, at most 64 KiB of UTF-8 (else ValueError). Silently nothing when the relay is closed.

        Raises Unsupported when the peer has no extensions. A peer that does not read its messages is closed with
        reason `flood` when 1 MiB of them waits.
        """
        if self._liveness is None:
            raise Unsupported(
                "the peer is not Rhizome and takes no control messages; its tunnel needs static configuration"
            )
        if self._closed:
            return
        self._outbox.control(text)
        self._flush()
        if self._outbox.overflows:
            self.close("flood", "the peer does not read its control messages")

    def retire(self, after_s: float) -> None:
        """Take no more packets from WireGuard, deliver what still comes in, close after `after_s` seconds."""
        self._port.deactivate(self)
        self._loop.call_later(after_s, self.close, "retired")

    def close(self, reason: str, detail: str = "") -> None:
        """End the stream now. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._port.deactivate(self)
        for timer in (self._timer, self._ack_timer):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._stream)
        self._loop.remove_writer(self._stream)
        if reason in _BROKEN or not self._sender.is_clean:
            self._stream.close()
        else:
            linger(self._loop, self._stream)
        self._loop.call_soon(self._hooks.closed, reason, detail)

    def stats(self) -> RelayStats:
        """What was moved and dropped since the start; also after the end."""
        sender, receiver = self._sender, self._receiver
        drops = Counter(sender.drops())
        drops[Drop.OVERSIZE] += receiver.parser.oversize
        return RelayStats(
            tx_packets=sender.packets,
            tx_bytes=sender.payload_bytes,
            rx_packets=receiver.packets,
            rx_bytes=receiver.parser.received_bytes,
            drops=tuple(sorted((reason.value, count) for reason, count in drops.items() if count)),
            rtt_s=self._liveness.srtt_s if self._liveness else None,
            queue_delay_s=sender.window.queue_delay_s if sender.window else None,
        )

    # What the port calls.

    def on_udp(self, sock: socket.socket) -> None:
        """WireGuard has packets for the stream."""
        now = self._loop.time()
        try:
            self._sender.take(sock, self._outbox, now)
        except OSError as exc:
            self.close(*_cause(exc))
            return
        self._watch(now)

    def on_packet(self, packet: bytes) -> None:
        """One packet that has waited for a stream."""
        self._sender.queue.push(packet, self._loop.time())
        self._flush()

    # What the loop calls.

    def _on_readable(self) -> None:
        if self._closed or self._again:
            return
        now = self._loop.time()
        try:
            self._read(now)
        except BadMessage as exc:
            self.close("malformed", str(exc))
        except OSError as exc:
            self.close(*_cause(exc))
        if not self._receiver.ended:
            self._answer(now)
        elif self._receiver.parser.inside_capsule:
            self.close("malformed", "the stream ended inside a capsule")
        else:
            self.close("eof", "the peer closed the stream")

    def _read(self, now: float) -> None:
        receiver, left = self._receiver, CAPSULES_PER_TURN
        while left > 0 and not self._closed:
            for item in receiver.read(left):
                if isinstance(item, Run):
                    self._port.send(item)
                    receiver.packets += len(item.payloads)
                else:
                    self._on_item(item, now)
            if not receiver.more:
                break
            left -= max(1, receiver.parser.parsed)
        if self._liveness is not None:
            self._liveness.on_received(now)
        if receiver.more:
            self._take_another_turn()

    def _take_another_turn(self) -> None:
        """Go on reading when everybody else had a turn."""
        self._again = True
        self._loop.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._again = False
        self._on_readable()

    def _on_item(self, item: Control | Ping | Pong | Ack, now: float) -> None:
        window, liveness = self._sender.window, self._liveness
        if window is None or liveness is None or self._closed:
            return
        match item:
            case Ack(received_bytes):
                if (rtt_s := window.on_ack(received_bytes, now)) is not None:
                    liveness.on_rtt(rtt_s)
            case Ping(opaque):
                self._outbox.pong(opaque)
            case Pong(opaque):
                if (rtt_s := liveness.on_answer(opaque, now)) is not None:
                    window.on_rtt(rtt_s, now)
                    window.resync()
            case Control(text):
                self._hooks.control(text)

    def _answer(self, now: float) -> None:
        """Acknowledge, answer pings, and use the room that acknowledgements have made."""
        if self._closed:
            return
        if self._liveness is not None:
            self._outbox.received_bytes = self._receiver.parser.received_bytes
            if self._outbox.unacked_bytes and self._ack_timer is None:
                self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._on_ack_due)
        if self._outbox or self._sender.queue or self._sender.blocked is Blocked.ON_READ:
            self._flush()
        else:
            self._watch(now)

    def _on_ack_due(self) -> None:
        self._ack_timer = None
        self._outbox.ack()
        self._flush()

    def _on_writable(self) -> None:
        if self._receiver.wants_write:
            self._on_readable()
        self._flush()

    def _flush(self) -> None:
        if self._closed:
            return
        now = self._loop.time()
        try:
            self._sender.flush(self._outbox, now)
        except OSError as exc:
            self.close(*_cause(exc))
            return
        self._watch(now)

    def _watch(self, now: float) -> None:
        """Watch for what the stream waits for, and be there in time when an answer is due."""
        wanted = self._sender.blocked is Blocked.ON_WRITE or self._receiver.wants_write
        if wanted != self._watching:
            self._watching = wanted
            if wanted:
                self._loop.add_writer(self._stream, self._on_writable)
            else:
                self._loop.remove_writer(self._stream)
        liveness, timer, window = self._liveness, self._timer, self._sender.window
        if liveness and timer and window and window.on_way and timer.when() > now + liveness.patience_s:
            self._schedule(now)

    # The one timer.

    def _unanswered_since(self) -> float | None:
        return self._sender.window.unanswered_since if self._sender.window else None

    def _schedule(self, now: float) -> None:
        due = [min(self._lifetime.ends_at, now + LIFETIME_CHECK_S)] if self._lifetime else []
        due += [self._liveness.next_wakeup(self._unanswered_since())] if self._liveness else []
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(max(min(due), now), self._on_timer) if due else None

    def _on_timer(self) -> None:
        now = self._loop.time()
        if self._lifetime is not None and self._lifetime.is_over(now, self._moved_bytes()):
            self._lifetime = None
            if self._hooks.worn is not None:
                self._loop.call_soon(self._hooks.worn)
        verdict = self._liveness.poll(self._unanswered_since(), now) if self._liveness else Verdict.WAIT
        if verdict is Verdict.DEAD:
            self.close("dead", f"{QUESTIONS} pings without an answer")
            return
        if verdict is Verdict.ASK:
            self._ping()
        if not self._closed:
            self._schedule(now)

    def _ping(self) -> None:
        if self._liveness is not None and self._sender.window is not None:
            self._sender.window.mark()
            self._outbox.ping(self._liveness.question)
            self._flush()

    def _moved_bytes(self) -> int:
        return max(self._sender.payload_bytes, self._receiver.parser.received_bytes)


#: Reasons after which nothing more can be said to the peer.
_BROKEN = frozenset({"dead", "malformed", "flood", "reset", "tls"})


def _cause(exc: OSError) -> tuple[str, str]:
    """Why a stream ended, as the reason and the detail of `on_closed`."""
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLSyscallError)):
        return "reset", "the connection ended in the middle of a record"
    if isinstance(exc, ssl.SSLError):
        return "tls", getattr(exc, "reason", None) or str(exc)
    if isinstance(exc, TimeoutError):
        return "dead", f"TCP had no answer for {USER_TIMEOUT_MS // 1000} s"
    return "reset", exc.strerror or str(exc)
