"""Processes of the relay benchmark: python -m benchmarks._relay_roles DIRECTORY ROLE PORT...

`serve` and the copies listen for TLS on 127.0.0.1 with the certificate in DIRECTORY and say `ready` and their port. The first
PORT is where the load is: its UDP port, or its TCP port for the copies. `dial UDP-PORT PORT COUNT` holds streams to `serve`
and says `ready` when they are up. All end with their stdin.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import ssl
import sys
from pathlib import Path

from agent.carrier.port import UdpPort
from agent.carrier.relay import Relay
from agent.run import spawn

CHUNK_BYTES = 64 * 1024


def server_context(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    context.num_tickets = 0
    return context


def client_context() -> ssl.SSLContext:
    """For loads: the certificate does not matter, only the cost of the bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def serve_relays(context: ssl.SSLContext, listener: socket.socket, udp_port: int) -> None:
    """One relay per connection, each with its own UDP port: what a seed server's carrier does after the 101.

    Before any capsule it tells the load that UDP port, in two bytes.
    """
    loop = asyncio.get_running_loop()
    while True:
        sock, _ = await loop.sock_accept(listener)
        sock.setblocking(True)
        stream = context.wrap_socket(sock, server_side=True)
        stream.setblocking(False)
        port = UdpPort(udp_port)
        stream.send(port.local_port.to_bytes(2, "big"))
        _start(stream, port)


async def dial_relays(udp_port: int, server_port: int, count: int) -> None:
    """Relays whose peers are those of `serve_relays`."""
    context = client_context()
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", server_port))
        stream = context.wrap_socket(sock)
        stream.recv(2)
        stream.setblocking(False)
        _start(stream, UdpPort(udp_port))
        await asyncio.sleep(0)
    print("ready", count, flush=True)


def _start(stream: ssl.SSLSocket, port: UdpPort) -> None:
    def close(_reason: str, _detail: str) -> None:
        port.close()

    Relay(stream, port, extensions=True, on_control=_ignore, on_closed=close).start()


def _ignore(_: str) -> None:
    return


async def serve_copies(context: ssl.SSLContext, listener: socket.socket, tcp_port: int, *, outwards: bool) -> None:
    """The bare copy between a TCP and a TLS stream with asyncio's own streams. `outwards`: from TCP into TLS."""

    async def copy(tls_reader: asyncio.StreamReader, tls_writer: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", tcp_port)
        source, sink = (reader, tls_writer) if outwards else (tls_reader, writer)
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()

    server = await asyncio.start_server(copy, sock=listener, ssl=context)
    await server.serve_forever()


async def main(directory: Path, role: str, ports: list[int]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    gc.collect()
    gc.freeze()
    if role == "dial":
        await dial_relays(*ports)
        await ended.wait()
        return
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        print("ready", listener.getsockname()[1], flush=True)
        context = server_context(directory)
        if role == "serve":
            serving = spawn(serve_relays(context, listener, *ports), name=role)
        else:
            serving = spawn(serve_copies(context, listener, *ports, outwards=role == "copy-out"), name=role)
        await ended.wait()
        serving.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]]))
