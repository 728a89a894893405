"""Sends one datagram of each size to an echo server and checks that the same bytes come back. Standard library only.

    datagrams.py HOST PORT SIZE[,SIZE...] [TRIES]

Prints {"sizes", "arrived", "missing": [sizes], "tries"}: `tries` is how many datagrams were sent in all.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time


def comes_back(udp: socket.socket, data: bytes, timeout_s: float) -> bool:
    """Whether exactly this datagram was echoed in time; others are late echoes and are skipped."""
    try:
        udp.send(data)
    except OSError:
        return False
    until = time.monotonic() + timeout_s
    while (left := until - time.monotonic()) > 0:
        udp.settimeout(left)
        try:
            if udp.recv(65535) == data:
                return True
        except OSError:
            continue
    return False


def main(argv: list[str]) -> None:
    host, port, sizes = argv[0], int(argv[1]), [int(size) for size in argv[2].split(",")]
    tries = int(argv[3]) if len(argv) > 3 else 5
    dice = random.Random(0)
    sent, missing = 0, []
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((host, port))
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        for size in sizes:
            data = dice.randbytes(size)
            for _ in range(tries):
                sent += 1
                if comes_back(udp, data, 1.0):
                    break
            else:
                missing.append(size)
    print(
        json.dumps({"sizes": len(sizes), "arrived": len(sizes) - len(missing), "missing": missing, "tries": sent}),
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
