"""The two ends of the egress benchmark, each a process of its own: a target that answers, and a client that dials and measures.

    python -m benchmarks._egress_load target                     prints its port
    python -m benchmarks._egress_load client MEASURE WAY ...     prints one line of JSON

A WAY is `direct PORT`, `unix PATH PORT` or `tls HOST:PORT CA CERTIFICATE KEY PORT`; PORT is the target's. The client speaks
what kube-apiserver speaks, one new connection per CONNECT and a full TLS handshake each time.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

#: In the namespace that the benchmark makes, on its loopback device; our proxy dials no loopback address.
HOST = "10.250.0.1"
CHUNK_BYTES = 256 * 1024
WARM_UP_S = 0.3
MESSAGE_BYTES = 1024

#: The first byte says what the target does: send without end, receive without end, send back messages, nothing.
SEND, RECEIVE, ECHO, IDLE = b"S", b"R", b"E", b"I"


def target() -> None:
    """Serve until standard input ends."""
    listener = socket.create_server((HOST, 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    sys.stdin.read()


def _accept(listener: socket.socket) -> None:
    """Connections that have said nothing yet cost no thread."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    silent: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                silent[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
                continue
            poll.unregister(fd)
            sock = silent.pop(fd)
            try:
                what = sock.recv(1)
            except OSError:
                what = b""
            if what and what != IDLE:
                threading.Thread(target=_answer, args=(sock, what), daemon=True).start()
            elif what:
                silent[-fd] = sock  # never read again
            else:
                sock.close()


def _answer(sock: socket.socket, what: bytes) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    try:
        while what == SEND:
            sock.sendall(buffer)
        while what == RECEIVE and sock.recv_into(buffer):
            pass
        while what == ECHO and (size := sock.recv_into(buffer)):
            sock.sendall(buffer[:size])
    except OSError:
        pass
    sock.close()


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach the target. `open` gives a connected blocking socket that leads to it."""

    open: Callable[[], socket.socket]


def way(words: list[str]) -> Way:
    kind, *rest = words
    port = int(rest[-1])
    if kind == "direct":
        return Way(lambda: _tcp(HOST, port))
    if kind == "unix":
        path = rest[0]
        return Way(lambda: _connect(_unix(path), port))
    address, ca, certificate, key = rest[:4]
    host, _, tls_port = address.rpartition(":")
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    context.load_cert_chain(certificate, key)
    return Way(lambda: _connect(context.wrap_socket(_tcp(host, int(tls_port))), port))


def _tcp(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def _connect(sock: socket.socket, port: int) -> socket.socket:
    sock.sendall(f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = sock.recv(4096)
        if not more:
            raise ConnectionError(f"no tunnel: {head!r}")
        head += more
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ConnectionError(f"no tunnel: {head!r}")
    return sock


# Measures, each a function of a way and a number


def connects(there: Way, count: float) -> dict[str, float]:
    """Milliseconds from the dial to the tunnel, one after the other."""
    for _ in range(20):
        there.open().close()
    times = []
    for _ in range(int(count)):
        began = time.perf_counter()
        sock = there.open()
        times.append(1000 * (time.perf_counter() - began))
        sock.close()
    return _quantiles(times)


def round_trips(there: Way, count: float) -> dict[str, float]:
    """Milliseconds for MESSAGE_BYTES there and back on one stream."""
    message, buffer = bytes(MESSAGE_BYTES), bytearray(MESSAGE_BYTES)
    times = []
    with there.open() as sock:
        sock.sendall(ECHO)
        for _ in range(int(count)):
            began = time.perf_counter()
            sock.sendall(message)
            left = MESSAGE_BYTES
            while left:
                left -= sock.recv_into(buffer)
            times.append(1000 * (time.perf_counter() - began))
    return _quantiles(times)


def throughput(there: Way, seconds: float, streams: int, what: bytes) -> dict[str, float]:
    """MiB/s of all streams together, and of the slowest one."""
    socks = [there.open() for _ in range(streams)]
    counts = [0] * streams
    stop = threading.Event()

    def pump(index: int) -> None:
        sock, buffer = socks[index], memoryview(bytearray(CHUNK_BYTES))
        try:
            sock.sendall(what)
            while not stop.is_set():
                counts[index] += sock.recv_into(buffer) if what == SEND else sock.send(buffer)
        except OSError:
            pass

    threads = [threading.Thread(target=pump, args=(index,), daemon=True) for index in range(streams)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP_S)
    began, before = time.perf_counter(), list(counts)
    time.sleep(seconds)
    took = time.perf_counter() - began
    rates = [(after - earlier) / took / 2**20 for after, earlier in zip(counts, before, strict=True)]
    stop.set()
    for sock in socks:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    for thread in threads:
        thread.join(5)
    return {"total": sum(rates), "least": min(rates)}


def hold(there: Way, count: float) -> dict[str, float]:
    """Keeps so many idle tunnels until standard input ends; says when they are up."""
    socks = [there.open() for _ in range(int(count))]
    print("ready", flush=True)
    sys.stdin.read()
    for sock in socks:
        sock.close()
    return {}


def stalled(there: Way, seconds: float) -> dict[str, float]:
    """One client stops reading in mid-stream, one target stops reading; what do others get meanwhile? Times in milliseconds;
    `served` of `asked` CONNECTs came back within their two seconds."""
    reader = there.open()
    reader.sendall(SEND)  # and never read
    writer = there.open()
    writer.sendall(IDLE)
    writer.settimeout(0.2)
    try:
        while True:
            writer.send(bytes(CHUNK_BYTES))  # until nothing more is taken
    except OSError:
        pass
    times: list[float] = []
    asked = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        asked += 1
        began = time.perf_counter()
        done = threading.Event()
        thread = threading.Thread(target=_try, args=(there, done), daemon=True)
        thread.start()
        if done.wait(2):
            times.append(1000 * (time.perf_counter() - began))
        time.sleep(0.02)
    return {"asked": asked, "served": len(times)} | (_quantiles(times) if times else {})


def _try(there: Way, done: threading.Event) -> None:
    try:
        with there.open() as sock:
            sock.sendall(ECHO)
            sock.sendall(b"x")
            if sock.recv(1):
                done.set()
    except OSError:
        pass


def _quantiles(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else times * 99
    return {"p50": statistics.median(times), "p99": cuts[98], "n": len(times)}


MEASURES: dict[str, Callable[[Way, float], dict[str, float]]] = {
    "connects": connects,
    "round_trips": round_trips,
    "down": lambda there, seconds: throughput(there, seconds, 1, SEND),
    "up": lambda there, seconds: throughput(there, seconds, 1, RECEIVE),
    "down8": lambda there, seconds: throughput(there, seconds, 8, SEND),
    "up8": lambda there, seconds: throughput(there, seconds, 8, RECEIVE),
    "hold": hold,
    "stalled": stalled,
}


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.argv[1] == "target":
        target()
    else:
        measure, number = sys.argv[2], float(sys.argv[3])
        print(json.dumps(MEASURES[measure](way(sys.argv[4:]), number)), flush=True)


if __name__ == "__main__":
    main()
