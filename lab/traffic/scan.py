"""Knocks on every door: TCP connects, UDP datagrams and pings, and lists whatever answers. Standard library only.

    scan.py ADDRESS[,ADDRESS...] TCP_PORTS UDP_PORTS [WAIT_S]

Ports as in `1-1024,6443`. A reset or an ICMP error is an answer too, from whomever: it betrays something. Prints
{"asked", "answers": [{"address", "protocol", "port", "answer"}], "no_route": [addresses that this machine cannot send to]}.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

_BATCH = 500  # sockets at once, at most, per address and protocol
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_NOT_SENT = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EINVAL}

_NO_ROUTE = "no route"


def ports(text: str) -> list[int]:
    out: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def _socket(address: str, kind: int, protocol: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind, protocol)
    made.setblocking(False)
    if kind == socket.SOCK_DGRAM:  # so that ICMP errors are told to us
        made.setsockopt(
            *((socket.IPPROTO_IPV6, _IPV6_RECVERR) if ":" in address else (socket.IPPROTO_IP, _IP_RECVERR)), 1
        )
    return made


def knock(address: str, kind: int, numbers: list[int], wait_s: float) -> Iterator[tuple[int, str]]:
    """(port, answer) for each port that answered; port 0 with `no route` when nothing could be sent."""
    waiting: dict[int, tuple[socket.socket, int]] = {}
    poll = select.poll()
    for number in numbers:
        door = _socket(address, kind)
        try:
            door.connect((address, number))
            if kind == socket.SOCK_DGRAM:
                door.send(b"?")
        except BlockingIOError:
            pass
        except OSError as exc:
            door.close()
            yield (0, _NO_ROUTE) if exc.errno in _NOT_SENT else (number, errno.errorcode.get(exc.errno or 0, "error"))
            continue
        waiting[door.fileno()] = (door, number)
        poll.register(door, select.POLLIN if kind == socket.SOCK_DGRAM else select.POLLOUT)
    until = time.monotonic() + wait_s
    while waiting and (left := until - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1e3):
            door, number = waiting.pop(descriptor)
            poll.unregister(descriptor)
            failed = door.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            yield number, errno.errorcode.get(failed, "error") if failed else "open"
            door.close()
    for door, _ in waiting.values():
        door.close()


def ping(address: str, wait_s: float) -> bool:
    """Whether an echo request is answered, by anything."""
    six = ":" in address
    with _socket(address, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP) as raw:
        token = os.urandom(16)
        kind, reply = (128, 129) if six else (8, 0)
        packet = struct.pack(">BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, 1) + token
        if not six:  # the kernel fills in ICMPv6 checksums only
            total = sum(struct.unpack(f">{len(packet) // 2}H", packet))
            total = (total & 0xFFFF) + (total >> 16)
            packet = packet[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]
        try:
            raw.sendto(packet, (address, 0))
        except OSError:
            return False
        until = time.monotonic() + wait_s
        poll = select.poll()
        poll.register(raw, select.POLLIN)
        while (left := until - time.monotonic()) > 0 and poll.poll(left * 1e3):
            data = raw.recv(65535)
            body = data if six else data[(data[0] & 15) * 4 :]
            if body and body[0] == reply and body.endswith(token):
                return True
    return False


def scan(address: str, protocol: str, numbers: list[int], wait_s: float, batch: int) -> list[tuple[int, str]]:
    """(port, answer) of everything that answered on this address by this protocol."""
    if protocol == "icmp":
        return [(0, "echo reply")] if ping(address, wait_s) else []
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    batches = (numbers[start : start + batch] for start in range(0, len(numbers), batch))
    return [answer for some in batches for answer in knock(address, kind, some, wait_s)]


def main(argv: list[str]) -> None:
    wait_s = float(argv[3]) if len(argv) > 3 else 1.0
    doors = {"tcp": ports(argv[1]), "udp": ports(argv[2]), "icmp": [0]}
    jobs = [(address, protocol) for address in argv[0].split(",") for protocol in doors]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    batch = min(_BATCH, (most - 50) // len(jobs))
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: scan(job[0], job[1], doors[job[1]], wait_s, batch), jobs))
    answers = [
        {"address": address, "protocol": protocol, "port": port, "answer": answer}
        for (address, protocol), heard in zip(jobs, found, strict=True)
        for port, answer in heard
        if answer != _NO_ROUTE
    ]
    no_route = {job[0] for job, heard in zip(jobs, found, strict=True) for _, answer in heard if answer == _NO_ROUTE}
    asked = sum(len(doors[protocol]) for _, protocol in jobs)
    print(json.dumps({"asked": asked, "answers": answers, "no_route": sorted(no_route)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
