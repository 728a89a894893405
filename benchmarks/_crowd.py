"""Many shoot clients in one process: real TLS streams, real enrolment, real liveness; no WireGuard behind them.

python -m benchmarks._crowd COUNT PKI-DIRECTORY HOST PORT: says `enrolled SECONDS` once each has its grant; ends with its stdin.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from agent.carrier.api import Command, DialConfig, Down, Event, Message, Redial, Send, TlsFiles, Up
from agent.carrier.streams import Streams
from agent.carrier.uplink import Uplink
from agent.identity import Identity, Role
from agent.messages import Offer
from agent.model import PublicKey
from agent.session import Session, State
from lab import addresses

AT_ONCE = 50
TICK_S = 1.0


def client_name(number: int) -> str:
    return f"crowd-{number}"


class Member:
    """One client: its carrier's role and its session, without a device."""

    def __init__(self, number: int, directory: Path, host: str, port: int) -> None:
        stem = f"client-{client_name(number)}"
        tls = TlsFiles(*(str(directory / name) for name in ("ca.crt", f"{stem}.crt", f"{stem}.key")))
        identity = str(Identity(addresses.CONTROL_PLANE, Role.SEED_SERVER))
        self.joined = asyncio.Event()
        self._session = Session((("stream", PublicKey(os.urandom(32))),), Offer())
        self._streams = Streams(self._on_event, first=1)
        # Port 9 is nobody's: what the server's WireGuard sends is refused by the kernel.
        config = DialConfig(host, port, addresses.SERVER_NAME, tls, 9, expected_identity=identity)
        self._uplink = Uplink(config, self._streams, self._on_event)

    def tick(self) -> None:
        self._do(self._session.tick(time.monotonic()))

    def _on_event(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Up):
            self._do(self._session.on_up(event.stream, event.replay, now))
        elif isinstance(event, Message):
            self._do(self._session.on_message(event.stream, event.text, now))
        elif isinstance(event, Down):
            self._session.on_down(event.stream)
        if self._session.state is State.JOINED:
            self.joined.set()

    def _do(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self._streams.send(command.stream, command.text)
            elif isinstance(command, Redial):
                self._uplink.redial()


async def main(count: int, directory: Path, host: str, port: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    turns = asyncio.Semaphore(AT_ONCE)
    members: list[Member] = []

    async def join(number: int) -> None:
        async with turns:
            member = Member(number, directory, host, port)
            members.append(member)
            await member.joined.wait()

    begin = time.monotonic()
    await asyncio.gather(*map(join, range(count)))
    print("enrolled", time.monotonic() - begin, flush=True)
    gc.freeze()
    while not over.is_set():
        for member in members:
            member.tick()
        try:
            await asyncio.wait_for(over.wait(), TICK_S)
        except TimeoutError:
            continue


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
