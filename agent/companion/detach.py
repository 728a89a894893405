"""A companion process begins: it reads its command line and makes itself independent of the daemon that started it."""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
import resource
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO, cast

from agent import logs
from agent.run import run_daemon


def companion_main(module: str, about: str | None, run: Callable[[Path, asyncio.Event], Awaitable[None]]) -> int:
    """`python -m MODULE --socket PATH`, as agent.companion.attach starts it; the exit code. `run(path, stop)` is its life."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to listen on for the daemon")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", default="json", choices=("json", "text"))
    arguments = parser.parse_args()
    detach_from_starter(module.rpartition(".")[2], arguments.log_level, arguments.log_format)
    return run_daemon(lambda stop: run(arguments.socket.absolute(), stop))


def detach_from_starter(role: str, level: str, log_format: str) -> None:
    """Make this process independent of who started it: its directory, its open-file limit and where its words go."""
    os.chdir("/")
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stderr = cast(TextIO, PatientStderr())
    sys.stdout = sys.stderr = stderr
    logging.raiseExceptions = False
    logs.configure(level, log_format, static={"role": role}, stream=stderr)


class PatientStderr(io.TextIOBase):
    """Standard error that never blocks and never fails: what cannot be written at once is lost.

    A daemon's pipe may have lost its reader, a log file its disk. A pipe or terminal is opened anew, which makes our end
    non-blocking and leaves the daemon's as it is; a file is not, because two openings of it would write over each other.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._is_socket = False
        try:
            kind = os.fstat(2).st_mode
            self._is_socket = stat.S_ISSOCK(kind)
            if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            else:
                self._fd = os.dup(2)
        except OSError:
            return  # nobody to tell

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        try:
            if self._is_socket:
                with socket.socket(fileno=os.dup(self._fd)) as sock:
                    sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                os.write(self._fd, data)
        except OSError:
            pass
        return len(text)
