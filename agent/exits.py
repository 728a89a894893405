"""Exit codes: one table for the daemons, the sub-commands, `--help` and the documentation."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a process of ours ends with. `meaning` is the sentence that `--help` prints."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Exit:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    OK = 0, "done, or stopped by SIGTERM"
    FAILED = (
        1,
        "it did not work; the last line on stderr says what, why and what to do next (status: not up; doctor: a check fails; check and plan of rhizome-ipam: there are problems)",
    )
    USAGE = 2, "the command line or the configuration cannot work; every problem is listed"
    UNSUPPORTED = 3, "this host lacks something: WireGuard, /dev/net/tun, CAP_NET_ADMIN, a program"
    CHANGES = 10, "plan of a daemon: the host differs from what is wanted"
    BUG = 70, "an error nobody foresaw; the traceback is on stderr"
    INTERRUPTED = 130, "stopped by SIGINT"
