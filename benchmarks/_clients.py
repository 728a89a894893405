"""The crowd of `benchmarks._crowd` on a lab's node, as a benchmark sees it, and a question to whoever carries an address."""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO

from agent.canary import PORT
from benchmarks._crowd import NODES, PODS, SERVICES, client_name
from lab import addresses
from lab.daemons import Daemon
from lab.inside import entered
from lab.lab import Lab
from lab.namespaces import Machine

QUESTION_EVERY_S = 0.02


class Clients:
    """So many clients, in a process that runs. Reading blocks until the crowd has got so far."""

    def __init__(self, process: subprocess.Popen[str], count: int) -> None:
        self.count = count
        self._orders, self._said = _pipe(process.stdin), _pipe(process.stdout)
        self.enrolled_s = self._seconds("enrolled")
        self.answering_s = self._seconds("answering")

    def freeze(self, number: int) -> None:
        """This client says nothing in the tunnel from now on; its stream stays."""
        self._orders.write(f"{number}\n")
        self._orders.flush()
        self._seconds("frozen")

    def _seconds(self, word: str) -> float:
        said, _, seconds = self._said.readline().partition(" ")
        if said != word:
            raise RuntimeError(f"the crowd of clients said {said!r} and not {word!r}")
        return float(seconds)


def seed_server(lab: Lab) -> Daemon:
    """The one whose shoot has the crowd's nodes."""
    ranges = {"node_networks": [str(NODES)], "pod_networks": [str(PODS)], "service_networks": [str(SERVICES)]}
    return lab.seed_server(**ranges)


@contextmanager
def gathered(lab: Lab, count: int) -> Iterator[Clients]:
    """Every one of them is granted and has answered a canary. The seed server has to run."""
    for number in range(count):
        lab.pki.client(client_name(number))
    command = [sys.executable, "-m", "benchmarks._crowd", str(count), str(lab.pki.directory)]
    command += [addresses.SEED.v4, str(addresses.SERVER_PORT)]
    argv = lab.node.command(["env", f"PYTHONPATH={Path(__file__).parent.parent}", *command])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            yield Clients(process, count)
        finally:
            process.terminate()


class Asker:
    """Asks the same question as the canary of an address behind the clients: who carries it answers."""

    def __init__(self, machine: Machine) -> None:
        with entered(machine.path):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(QUESTION_EVERY_S)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._socket.close()

    def longest_silence_s(self, address: IPv4Address, over: threading.Event) -> float:
        """Between two answers, until it is over. What is lost on the way is asked again QUESTION_EVERY_S later."""
        answered_at, longest_s = time.monotonic(), 0.0
        while not over.is_set():
            with suppress(TimeoutError):
                self.until_answered(address, 1.0)
                now = time.monotonic()
                answered_at, longest_s = now, max(longest_s, now - answered_at)
            over.wait(QUESTION_EVERY_S)
        return max(longest_s, time.monotonic() - answered_at)

    def until_answered(self, address: IPv4Address, timeout_s: float) -> float:
        """Seconds until the first answer to a question that was asked after this call. Raises TimeoutError."""
        begin, first = time.monotonic(), next(self._numbers)
        while (now := time.monotonic()) - begin < timeout_s:
            self._socket.sendto(b"rzC?" + struct.pack("!II", next(self._numbers), 0), (str(address), PORT))
            while (left := now + QUESTION_EVERY_S - time.monotonic()) > 0:
                self._socket.settimeout(left)
                try:
                    answer = self._socket.recv(64)
                except TimeoutError:
                    break
                if struct.unpack_from("!I", answer, 4)[0] > first:
                    return time.monotonic() - begin
        raise TimeoutError(f"nobody answered for {address} within {timeout_s:.0f} s")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
