"""A slow, long, lossy link in user space, for kernels without netem: two TUN devices and a model of the wire between them.

Each direction is a drop-tail queue of `limit_packets` in front of a wire of `rate_mbit`, then a fixed delay. A packet is
lost with probability `loss` before it is queued. As a program (`impair.py LEFT_NETNS RIGHT_NETNS IFNAME SETTINGS`,
standard library only) it makes the devices, prints `ready`, reads SETTINGS again on SIGHUP, prints its counters as one
JSON line on SIGUSR1 and at the end, and takes the devices with it when it ends.

Limits, measured by tests/netns/test_lab.py: about 20,000 packets/s on one core, and a wake-up costs some 0.1 ms of delay.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import select
import signal
import struct
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

_CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
_PR_SET_TIMERSLACK = 29
_READ_BUDGET = 128  # packets taken from one side before the other gets its turn


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a wire. `rate_mbit` counts IP bytes, 0 is without limit; `limit_packets` is the queue's length."""

    rate_mbit: float = 0.0
    delay_ms: float = 0.0
    limit_packets: int = 1000
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Impairment:
    """Both directions, seen from the shoot: `down` is what it receives."""

    down: Link = Link()
    up: Link = Link()

    @classmethod
    def symmetric(
        cls, rate_mbit: float = 0.0, rtt_ms: float = 0.0, limit_packets: int = 1000, loss: float = 0.0
    ) -> Impairment:
        link = Link(rate_mbit, rtt_ms / 2, limit_packets, loss)
        return cls(link, link)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Impairment:
        read = json.loads(text)
        return cls(Link(**read["down"]), Link(**read["up"]))


@dataclass(slots=True)
class Counters:
    """What one direction has seen. `most_queued` is the longest the queue has been."""

    packets: int = 0
    lost: int = 0
    overflowed: int = 0
    most_queued: int = 0


@dataclass(slots=True)
class Wire:
    """One direction at work: the model. Times are seconds of any one clock, and never go back."""

    link: Link
    dice: random.Random
    counters: Counters = field(default_factory=Counters)
    free_at: float = 0.0  # when the last bit of the last accepted packet has left the queue
    leaving: deque[float] = field(default_factory=deque)  # when each queued packet will have left it
    flying: deque[tuple[float, bytes]] = field(default_factory=deque)

    def accept(self, packet: bytes, now: float) -> None:
        """A packet arrives at the queue."""
        self.counters.packets += 1
        if self.link.loss and self.dice.random() < self.link.loss:
            self.counters.lost += 1
            return
        while self.leaving and self.leaving[0] <= now:
            self.leaving.popleft()
        if len(self.leaving) >= self.link.limit_packets:
            self.counters.overflowed += 1
            return
        seconds = len(packet) * 8 / (self.link.rate_mbit * 1e6) if self.link.rate_mbit else 0.0
        self.free_at = max(self.free_at, now) + seconds
        self.leaving.append(self.free_at)
        self.counters.most_queued = max(self.counters.most_queued, len(self.leaving))
        self.flying.append((self.free_at + self.link.delay_ms / 1e3, packet))

    def due(self, now: float) -> list[bytes]:
        """The packets that have arrived at the far end by now."""
        arrived = []
        while self.flying and self.flying[0][0] <= now:
            arrived.append(self.flying.popleft()[1])
        return arrived

    def next_due(self) -> float | None:
        return self.flying[0][0] if self.flying else None


def open_tun(netns: Path, ifname: str) -> int:
    """A new TUN device in that network namespace, as a non-blocking file descriptor; it lives as long as this."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(netns, os.O_RDONLY)
    try:
        enter(there)
        try:
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", ifname.encode(), IFF_TUN_NO_PI))
        finally:
            enter(home)
    finally:
        os.close(home)
        os.close(there)
    return tun


def forward(left: int, right: int, settings: Path) -> None:
    """Carry packets between the two devices until SIGTERM. What comes out of `left` goes down."""
    wanted = Impairment.from_json(settings.read_text())
    down, up = Wire(wanted.down, random.Random(1)), Wire(wanted.up, random.Random(2))

    def reread(*_: object) -> None:
        changed = Impairment.from_json(settings.read_text())
        down.link, up.link = changed.down, changed.up

    def report(*_: object) -> None:
        print(json.dumps({"down": asdict(down.counters), "up": asdict(up.counters)}), flush=True)

    def end(*_: object) -> None:
        report()
        sys.exit(0)

    signal.signal(signal.SIGHUP, reread)
    signal.signal(signal.SIGUSR1, report)
    signal.signal(signal.SIGTERM, end)
    lanes = ((down, left, right), (up, right, left))
    print("ready", flush=True)
    while True:
        due = [at for at in (down.next_due(), up.next_due()) if at is not None]
        # select, because epoll rounds its timeout up to whole milliseconds.
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        select.select((left, right), (), (), timeout)
        for wire, source, sink in lanes:
            for _ in range(_READ_BUDGET):
                try:
                    packet = os.read(source, 65535)
                except BlockingIOError:
                    break
                wire.accept(packet, time.monotonic())
            for packet in wire.due(time.monotonic()):
                try:
                    os.write(sink, packet)
                except OSError:  # the far end is down or full: a real wire would not wait either
                    wire.counters.lost += 1


def main(argv: list[str]) -> None:
    left_netns, right_netns, ifname, settings = argv
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    forward(open_tun(Path(left_netns), ifname), open_tun(Path(right_netns), ifname), Path(settings))


if __name__ == "__main__":
    main(sys.argv[1:])
