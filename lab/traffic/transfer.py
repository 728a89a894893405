"""Moves bytes to or from the bulk server and checks that they are the same bytes. Standard library only.

    transfer.py HOST PORT BYTES up|down [STREAMS]

Prints {"bytes", "seconds", "mbit_s", "intact"}; `bytes` and `mbit_s` are of all streams together.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
import time

_BLOCK = hashlib.shake_256(b"rhizome lab").digest(1 << 20)


def transfer(host: str, port: int, total: int, direction: str) -> bool:
    """Whether both ends computed the same digest over all `total` bytes."""
    digest, done = hashlib.sha256(), 0
    with socket.create_connection((host, port), timeout=30) as connection:
        reader = connection.makefile("rb")
        connection.sendall(json.dumps({"bytes": total, "send": direction}).encode() + b"\n")
        while done < total:
            if direction == "down":
                block = reader.read1(min(1 << 20, total - done))
                if not block:
                    return False
            else:
                block = (done.to_bytes(8, "big") + _BLOCK[8:])[: total - done]
                connection.sendall(block)
            digest.update(block)
            done += len(block)
        return reader.readline().strip() == digest.hexdigest().encode()


def main(argv: list[str]) -> None:
    host, port, total, direction = argv[0], int(argv[1]), int(argv[2]), argv[3]
    streams = int(argv[4]) if len(argv) > 4 else 1
    results = [False] * streams

    def one(index: int) -> None:
        results[index] = transfer(host, port, total // streams, direction)

    start = time.monotonic()
    threads = [threading.Thread(target=one, args=(index,)) for index in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    moved = total // streams * streams
    report = {
        "bytes": moved,
        "seconds": round(seconds, 4),
        "mbit_s": round(moved * 8 / seconds / 1e6, 2),
        "intact": all(results),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
