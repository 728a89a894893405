"""Socket options, read back from the kernel."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from agent.carrier import sockets
from agent.model import FWMARK


def test_a_tcp_socket_is_prepared() -> None:
    with socket.socket() as sock:
        sockets.tune_tcp(sock)
        tcp = socket.IPPROTO_TCP
        assert sock.getsockopt(tcp, socket.TCP_NODELAY)
        assert sock.getsockopt(tcp, sockets.TCP_NOTSENT_LOWAT) == 128 * 1024
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 15_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        keepalive = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(tcp, option) for option in keepalive] == [15, 5, 3]
        allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
        name = sock.getsockopt(tcp, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
        assert name == "bbr" or "bbr" not in allowed


class Unprivileged(socket.socket):
    def setsockopt(self, level: int, option: int, value: Any, *_: object) -> None:
        if option in (socket.SO_MARK, sockets.SO_RCVBUFFORCE):
            raise PermissionError(1, "Operation not permitted")
        super().setsockopt(level, option, value)


def test_the_mark_is_set_or_said_once_to_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as sock:
        if sockets.set_mark(sock):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == FWMARK
    sockets._say_unmarked.cache_clear()
    with Unprivileged() as sock, caplog.at_level(logging.WARNING):
        assert not sockets.set_mark(sock)
        assert not sockets.set_mark(sock)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["no CAP_NET_ADMIN"]


def test_a_receive_buffer_grows_with_and_without_privileges() -> None:
    for kind in (socket.socket, Unprivileged):
        with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            sockets.grow_receive_buffer(sock)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before
