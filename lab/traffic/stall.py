"""A TCP connection that is stuck in both directions, for as long as this process lives. Standard library only.

    stall.py HOST ECHO_PORT

Sends and never reads. The echo server fills our receive window, can write no more, and so stops reading too. Prints `stuck`
once nothing has moved for a second.
"""

from __future__ import annotations

import select
import signal
import socket
import sys


def main(argv: list[str]) -> None:
    with socket.create_connection((argv[0], int(argv[1]))) as connection:
        connection.setblocking(False)
        block = bytes(65536)
        while select.select([], [connection], [], 1.0)[1]:
            connection.send(block)
        print("stuck", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
