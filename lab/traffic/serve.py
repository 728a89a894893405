"""What a node or a pod offers in the lab: a web page, TCP and UDP echo, and bulk data. Standard library only.

    serve.py NAME HTTP_PORT ECHO_PORT BULK_PORT

The page says which machine answered and whom it saw. The bulk protocol: one line of JSON `{"bytes": N, "send": "up"|"down"}`,
then N bytes that way, then one line with the SHA-256 of them, from the server.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
from collections.abc import Callable

_BLOCK = hashlib.shake_256(b"rhizome lab").digest(1 << 20)


def page(name: str, connection: socket.socket, peer: str) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            return
        head += data
    body = json.dumps({"machine": name, "client": peer, "request": head.split(b"\r\n")[0].decode(errors="replace")})
    answer = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body) + 1}\r\nConnection: close\r\n\r\n{body}\n"
    connection.sendall(answer.encode())


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def bulk(connection: socket.socket) -> None:
    reader = connection.makefile("rb")
    order = json.loads(reader.readline())
    total, digest, done = int(order["bytes"]), hashlib.sha256(), 0
    if order["send"] == "down":
        while done < total:
            # The counter makes every block different, so a block lost, doubled or moved changes the digest.
            block = (done.to_bytes(8, "big") + _BLOCK[8:])[: total - done]
            connection.sendall(block)
            digest.update(block)
            done += len(block)
    else:
        while done < total:
            block = reader.read1(min(1 << 20, total - done))
            if not block:
                return
            digest.update(block)
            done += len(block)
    connection.sendall(digest.hexdigest().encode() + b"\n")


def serve_tcp(port: int, handle: Callable[[socket.socket, str], None]) -> None:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)

    def one(connection: socket.socket, peer: str) -> None:
        with connection:
            connection.settimeout(300)
            try:
                handle(connection, peer)
            except OSError:
                pass  # the client went away; that is its business

    def accept() -> None:
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=one, args=(connection, peer[0].removeprefix("::ffff:")), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def echo_datagrams(port: int) -> None:
    """Answers from the address that was asked, which a socket bound to a wildcard would not do by itself."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        udp.bind(("::", port))
        print("ready", flush=True)
        while True:
            data, control, _, peer = udp.recvmsg(65535, 256)
            # The address of ours that was asked, without the interface: the answer may take another way.
            asked = [(level, kind, info[:16] + bytes(4)) for level, kind, info in control]
            try:
                udp.sendmsg([data], asked, 0, peer)
            except OSError:
                continue  # no way back at the moment


def main(argv: list[str]) -> None:
    name, http_port, echo_port, bulk_port = argv[0], *map(int, argv[1:])
    serve_tcp(http_port, lambda connection, peer: page(name, connection, peer))
    serve_tcp(echo_port, lambda connection, peer: echo(connection))
    serve_tcp(bulk_port, lambda connection, peer: bulk(connection))
    echo_datagrams(echo_port)


if __name__ == "__main__":
    main(sys.argv[1:])
