"""What the relay costs: CPU time of its process per byte, against a bare TLS copy and against Envoy; and idle streams."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.identity import Role
from agent.pki import issue, make_ca
from benchmarks import _envoy
from benchmarks import _relay_load as load
from benchmarks._process import usage
from benchmarks._relay_roles import client_context
from benchmarks.figure import Figure

ROUNDS = 5
WARM_UP_S, ROUND_S = 0.5, 1.0
IDLE_STREAMS = 1000
IDLE_S = 15.0
_NOTE = "1452-byte datagrams, CPU time of the relay's process"

#: Runs a load for some seconds and returns the bits that arrived per CPU second of the process under test.
Measure = Callable[[float], float]


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="rhizome-bench-") as name:
        directory = Path(name)
        make_ca(directory, "bench")
        issue(directory, Role.SEED_SERVER, dns=["bench.test"])
        yield from _throughput(directory)
        yield from _idle(directory)


def _throughput(directory: Path) -> Iterator[Figure]:
    with contextlib.ExitStack() as stack:
        subjects: dict[str, Measure] = {
            "relay out": stack.enter_context(_relay(directory, outwards=True)),
            "copy out": stack.enter_context(_copy(directory, outwards=True)),
            "relay in": stack.enter_context(_relay(directory, outwards=False)),
            "copy in": stack.enter_context(_copy(directory, outwards=False)),
        }
        with contextlib.suppress(ImportError):  # no Envoy here: that figure is left out
            subjects["envoy in"] = stack.enter_context(_envoy_terminator(directory))
        for measure in subjects.values():
            measure(WARM_UP_S)
        # In turns, so that a noisy moment of the machine meets all of them.
        rounds = [{name: measure(ROUND_S) for name, measure in subjects.items()} for _ in range(ROUNDS)]
    gbit = {name: statistics.median(one[name] for one in rounds) / 1e9 for name in subjects}
    note = f"{_NOTE}; baseline: a bare asyncio TLS copy"
    yield Figure("relay.udp_to_tls.gbit_per_cpu_s", gbit["relay out"], "Gbit/CPU-s", gbit["copy out"], ROUNDS, note)
    yield Figure("relay.tls_to_udp.gbit_per_cpu_s", gbit["relay in"], "Gbit/CPU-s", gbit["copy in"], ROUNDS, note)
    if "envoy in" in gbit:
        yield Figure(
            "relay.vs_envoy.cpu_ratio",
            gbit["envoy in"] / gbit["relay in"],
            "ratio",
            1.0,
            ROUNDS,
            f"CPU per byte, TLS to UDP; Envoy's CONNECT-UDP on TLS, one hop: {gbit['envoy in']:.2f} Gbit/CPU-s",
        )


def _idle(directory: Path) -> Iterator[Figure]:
    """Idle streams of a server, each with a peer that is a relay in another process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with load.wireguard_socket() as udp, _role(directory, "serve", udp.getsockname()[1]) as (server, port):
        with _role(directory, "dial", udp.getsockname()[1], port, 1):
            before = usage(server.pid)
        with _role(directory, "dial", udp.getsockname()[1], port, IDLE_STREAMS):
            kib = (usage(server.pid).rss_mib - before.rss_mib) * 1024 / IDLE_STREAMS
            begin, cpu = time.monotonic(), _cpu_s(server.pid)
            time.sleep(IDLE_S)
            busy = (_cpu_s(server.pid) - cpu) / (time.monotonic() - begin)
    note = f"resident memory of the server's carrier, {IDLE_STREAMS} streams"
    yield Figure("relay.idle.kib_per_stream", kib, "KiB", None, IDLE_STREAMS, note)
    note = f"of one CPU, server side, {IDLE_STREAMS} streams with pings"
    yield Figure("relay.idle.cpu_percent", 100 * busy, "%", None, 1, note)


@contextlib.contextmanager
def _relay(directory: Path, *, outwards: bool) -> Iterator[Measure]:
    with contextlib.ExitStack() as stack:
        udp = stack.enter_context(load.wireguard_socket())
        process, port = stack.enter_context(_role(directory, "serve", udp.getsockname()[1]))
        stream = stack.enter_context(_dial(port))
        relay_port = int.from_bytes(stream.recv(2), "big")
        stream.setblocking(False)
        pump = load.out_of_udp(udp, relay_port, stream) if outwards else load.into_udp(udp, stream)
        yield lambda seconds: _bits_per_cpu_s(process.pid, pump, seconds)


@contextlib.contextmanager
def _copy(directory: Path, *, outwards: bool) -> Iterator[Measure]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        role = "copy-out" if outwards else "copy-in"
        process, port = stack.enter_context(_role(directory, role, listener.getsockname()[1]))
        stream = stack.enter_context(_dial(port))
        tcp = stack.enter_context(listener.accept()[0])
        for sock in (stream, tcp):
            sock.setblocking(False)
        pump = load.out_of_tcp(tcp, stream) if outwards else load.into_tcp(tcp, stream)
        yield lambda seconds: _bits_per_cpu_s(process.pid, pump, seconds)


@contextlib.contextmanager
def _envoy_terminator(directory: Path) -> Iterator[Measure]:
    """Raises ImportError where Envoy is not installed."""
    with contextlib.ExitStack() as stack:
        udp = stack.enter_context(load.wireguard_socket())
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        argv = _envoy.argv(directory, port, udp.getsockname()[1])
        process = stack.enter_context(_ending(subprocess.Popen(argv, stderr=subprocess.DEVNULL)))
        stream = stack.enter_context(_dial(port))
        stream.send(
            b"GET /.well-known/masque/udp/127.0.0.1/51820/ HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\n"
            b"Upgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n"
        )
        if b" 200 OK" not in (answer := stream.recv(65536)):  # and not 101: that is what this version says
            raise RuntimeError(f"Envoy refused: {answer[:200]!r}")
        stream.setblocking(False)
        pump = load.into_udp(udp, stream)
        yield lambda seconds: _bits_per_cpu_s(process.pid, pump, seconds)


@contextlib.contextmanager
def _role(directory: Path, *argv: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process of `_relay_roles` that is ready, and the number it says then."""
    command = [sys.executable, "-m", "benchmarks._relay_roles", str(directory), *map(str, argv)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with _ending(process):
        assert process.stdout is not None
        word, _, number = process.stdout.readline().partition(" ")
        if word != "ready":
            raise RuntimeError(f"{command} did not start")
        yield process, int(number)


@contextlib.contextmanager
def _ending(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    with process:
        try:
            yield process
        finally:
            process.kill()


def _dial(port: int) -> ssl.SSLSocket:
    """A blocking TLS stream to a process that may be starting still."""
    until = time.monotonic() + 10
    while True:
        try:
            sock = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client_context().wrap_socket(sock)


def _bits_per_cpu_s(pid: int, pump: load.Pump, seconds: float) -> float:
    cpu = _cpu_s(pid)
    arrived = pump(seconds)
    return 8 * arrived / (_cpu_s(pid) - cpu)


def _cpu_s(pid: int) -> float:
    """CPU time of another process in nanosecond steps (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)
