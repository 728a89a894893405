"""Asks an echo server N times a second and remembers each question that got no answer. Standard library only.

    probe.py udp|tcp|icmp HOST PORT RATE_PER_S SECONDS [PAYLOAD_BYTES]

Says `started`, and `answered` with the first answer. Ends after SECONDS (0: never) or on SIGTERM or SIGINT, waits for late
answers, and prints one JSON object:
    sent, answered, lost      questions
    outage_s                  longest run of lost questions, from the first lost one to the next that was answered
    outages_s                 every such run
    first_answer_at           when the first answer came, on the clock of time.monotonic(), null for none
    rtt_ms                    p50, p95, p99 and max over the answered ones
Each question of `tcp` is a new connection that sends one byte and waits for it to come back; `icmp` ignores PORT.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from types import FrameType

_LATE_S = 2.0  # an answer later than this is none


class Record:
    """When each question was asked and how long its answer took."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.asked: list[float] = []
        self.took: dict[int, float] = {}

    def ask(self) -> int:
        self.asked.append(time.monotonic())
        return len(self.asked) - 1

    def answer(self, number: int) -> None:
        if 0 <= number < len(self.asked):
            took = time.monotonic() - self.asked[number]
            if took <= _LATE_S:
                if not self.took:
                    print("answered", flush=True)
                self.took.setdefault(number, took)

    def last_unanswered(self) -> float:
        """When the last question without an answer was asked; long ago when all are answered."""
        return next((at for number, at in reversed(list(enumerate(self.asked))) if number not in self.took), -_LATE_S)

    def report(self) -> dict[str, object]:
        outages, since = [], None
        for number, at in enumerate(self.asked):
            if number in self.took:
                if since is not None:
                    outages.append(at - since)
                since = None
            elif since is None:
                since = at
        if since is not None:
            outages.append(time.monotonic() - since)
        times = sorted(self.took.values())
        first = min((self.asked[number] + took for number, took in self.took.items()), default=None)
        return {
            "sent": len(self.asked),
            "answered": len(times),
            "lost": len(self.asked) - len(times),
            "outage_s": round(max(outages, default=0.0), 4),
            "outages_s": [round(outage, 4) for outage in outages],
            "first_answer_at": first,
            "rtt_ms": {
                name: round(times[min(len(times) - 1, int(len(times) * share))] * 1e3, 3) if times else None
                for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
            },
        }


class Udp:
    """Every question is one datagram with its number in front."""

    def __init__(self, address: tuple[str, int], record: Record, payload_bytes: int, *, icmp: bool = False) -> None:
        self._record = record
        self._address = address
        self._six = ":" in address[0]
        self._filler = bytes(max(0, payload_bytes - 8))
        protocol = (socket.IPPROTO_ICMPV6 if self._six else socket.IPPROTO_ICMP) if icmp else 0
        self._socket = socket.socket(
            socket.AF_INET6 if self._six else socket.AF_INET, socket.SOCK_RAW if icmp else socket.SOCK_DGRAM, protocol
        )
        self._socket.setblocking(False)

    def _packet(self, number: int) -> bytes:
        return struct.pack(">Q", number) + self._filler

    def _number(self, data: bytes) -> int | None:
        return int(struct.unpack_from(">Q", data)[0])

    def ask(self) -> None:
        number = self._record.ask()
        try:
            self._socket.sendto(self._packet(number), self._address)
        except OSError:
            pass  # no route right now: asked and not answered

    def collect(self, timeout: float) -> None:
        if not select.select([self._socket], [], [], max(0.0, timeout))[0]:
            return
        while True:
            try:
                number = self._number(self._socket.recv(65535))
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier question
            if number is not None:
                self._record.answer(number)


class Icmp(Udp):
    """Echo requests. Every raw socket hears all replies; ours are known by the random token."""

    def __init__(self, address: tuple[str, int], record: Record, payload_bytes: int) -> None:
        super().__init__((address[0], 0), record, payload_bytes, icmp=True)
        self._token = os.urandom(8)

    def _packet(self, number: int) -> bytes:
        body = self._token + struct.pack(">Q", number) + self._filler
        request = (128 if self._six else 8, 0, 0, os.getpid() & 0xFFFF, number & 0xFFFF)
        packet = struct.pack(">BBHHH", *request) + body
        if not self._six:  # the kernel computes the checksum of ICMPv6 only
            padded = packet + bytes(len(packet) % 2)
            total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
            total = (total & 0xFFFF) + (total >> 16)
            packet = packet[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]
        return packet

    def _number(self, data: bytes) -> int | None:
        start = 0 if self._six else (data[0] & 15) * 4
        if data[start : start + 1] != (b"\x81" if self._six else b"\0") or data[start + 8 : start + 16] != self._token:
            return None
        return int(struct.unpack_from(">Q", data, start + 16)[0])


class Tcp:
    """Every question is a connection of its own."""

    def __init__(self, address: tuple[str, int], record: Record, payload_bytes: int) -> None:
        self._record = record
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, int] = {}

    def ask(self) -> None:
        number = self._record.ask()
        connection = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET)
        connection.setblocking(False)
        try:
            connection.connect(self._address)
        except BlockingIOError:
            pass
        except OSError:
            connection.close()
            return
        self._open[connection] = number
        self._selector.register(connection, selectors.EVENT_WRITE)

    def collect(self, timeout: float) -> None:
        for key, events in self._selector.select(max(0.0, timeout)):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    connection.send(b"?")
                    self._selector.modify(connection, selectors.EVENT_READ)
                    continue
                if connection.recv(1):
                    self._record.answer(self._open[connection])
            except OSError:
                pass
            self._close(connection)
        now = time.monotonic()
        for connection in [c for c, number in self._open.items() if now - self._record.asked[number] > _LATE_S]:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._open[connection]
        connection.close()


def run(make: Callable[[Record], Udp | Tcp], rate: float, seconds: float) -> dict[str, object]:
    stopped = False

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    record = Record()
    prober = make(record)
    print("started", flush=True)
    due = record.start
    while not stopped and (not seconds or time.monotonic() - record.start < seconds):
        now = time.monotonic()
        if now >= due:
            prober.ask()
            due += 1 / rate
            if due < now - 1:  # this process was not scheduled: do not pretend that it asked
                due = now
        prober.collect(due - time.monotonic())
    while time.monotonic() < record.last_unanswered() + _LATE_S:
        prober.collect(0.05)
    return record.report()


def main(argv: list[str]) -> None:
    kind, host, port, rate, seconds = argv[0], argv[1], int(argv[2]), float(argv[3]), float(argv[4])
    payload_bytes = int(argv[5]) if len(argv) > 5 else 64
    probers: dict[str, type[Udp] | type[Tcp]] = {"udp": Udp, "tcp": Tcp, "icmp": Icmp}
    print(json.dumps(run(lambda record: probers[kind]((host, port), record, payload_bytes), rate, seconds)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
