"""Many datagrams in one system call: UDP segmentation offload (linux/udp.h, UDP_SEGMENT), with a test that it works here.

One sendmsg of 45 packets costs a quarter of 45 sends. The kernel cuts the message into equal segments again before
WireGuard's socket sees it. Some kernels and network cards have got this wrong, so a process tries it once before use.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import struct

from agent.carrier.capsule import Run

log = logging.getLogger("rhizome.carrier")

UDP_SEGMENT = 103
_SIZE = struct.Struct("=H")
_TEST_SEGMENTS, _TEST_BYTES, _TEST_TIMEOUT_S = 8, 1452, 0.5


@functools.cache
def works() -> bool:
    """Whether segments that this process sends over loopback arrive as they should. Tried once."""
    sent = [bytes([n]) * _TEST_BYTES for n in range(_TEST_SEGMENTS)]
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(_TEST_TIMEOUT_S)
            sender.connect(receiver.getsockname())
            sender.sendmsg(sent, [(socket.IPPROTO_UDP, UDP_SEGMENT, _SIZE.pack(_TEST_BYTES))])
            arrived = [receiver.recv(65536) for _ in sent]
    except OSError as exc:
        log.info("no UDP segmentation offload here: %s", exc, extra={"event": "gso.off"})
        return False
    if arrived != sent:
        log.warning("UDP segmentation offload mangles packets on this kernel: not used", extra={"event": "gso.off"})
    return arrived == sent


class RunSender:
    """Sends runs of datagrams into one connected UDP socket. What the kernel does not take is dropped and counted."""

    __slots__ = ("_gso", "_sock", "drops")

    def __init__(self, sock: socket.socket, *, gso: bool) -> None:
        self._sock = sock
        self._gso = gso
        self.drops = 0

    def send(self, run: Run) -> None:
        if len(run.payloads) > 1 and self._gso and self._send_segments(run):
            return
        for payload in run.payloads:
            self._send_one(payload)

    def _send_segments(self, run: Run) -> bool:
        """False: send them one by one."""
        size = [(socket.IPPROTO_UDP, UDP_SEGMENT, _SIZE.pack(run.segment_bytes))]
        try:
            self._sock.sendmsg(run.payloads, size)
        except OSError as exc:
            if exc.errno == errno.EIO:  # a device without checksum offload
                self._gso = False
            elif exc.errno not in _ONE_BY_ONE:
                self.drops += len(run.payloads)
                return True
            return False
        return True

    def _send_one(self, payload: memoryview) -> None:
        try:
            self._sock.send(payload)
        except ConnectionRefusedError:
            # That was the fate of an earlier packet, while WireGuard was down; this one has not been sent yet.
            try:
                self._sock.send(payload)
            except OSError:
                self.drops += 1
        except OSError:
            self.drops += 1


#: Reasons to try the packets of a run singly: an error of an earlier packet, and runs the kernel finds too large.
_ONE_BY_ONE = (errno.ECONNREFUSED, errno.EINVAL, errno.EMSGSIZE)
