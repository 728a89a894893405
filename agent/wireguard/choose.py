"""Which WireGuard this host can run: `--wireguard=auto|kernel|userspace`."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from agent.errors import Unsupported
from agent.host import WireGuard
from agent.wireguard import kernel
from agent.wireguard.userspace import UserspaceWireGuard

PROGRAM = "wireguard-go"
#: Where scripts/install-wireguard-go puts the release it builds, below the home directory.
BUILT_PROGRAM = Path(".cache/rhizome/bin") / PROGRAM

_TUN = Path("/dev/net/tun")
_CAP_NET_ADMIN = 12


class Mode(Enum):
    AUTO = "auto"  #: the kernel where it has WireGuard, else user space
    KERNEL = "kernel"
    USERSPACE = "userspace"


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend that works here. `kind` is KERNEL or USERSPACE; `reason` says for people why it is this one."""

    backend: WireGuard
    kind: Mode
    reason: str


async def choose(
    mode: Mode,
    *,
    program: str = PROGRAM,
    on_exit: Callable[[str], None] | None = None,
    memory_limit_mib: int = 100,
) -> Choice:
    """The backend for `mode`; the other parameters are for user space (see UserspaceWireGuard and find_program).

    Raises Unsupported, with all that is missing and what to do about it.
    """
    if mode is not Mode.USERSPACE:
        refusal = await kernel.probe()
        if refusal is None:
            return Choice(kernel.KernelWireGuard(), Mode.KERNEL, "kernel: this kernel has WireGuard")
        if mode is Mode.KERNEL:
            raise Unsupported(f"--wireguard=kernel: {refusal}")
    found, problems = _userspace(program)
    if found is None:
        tried = [] if mode is Mode.USERSPACE else [f"kernel: {refusal}"]
        raise Unsupported(
            "\n".join([f"--wireguard={mode.value} cannot work here:", *tried, *(f"user space: {p}" for p in problems)])
        )
    why = "asked for" if mode is Mode.USERSPACE else refusal
    backend = UserspaceWireGuard(found, on_exit=on_exit, memory_limit_mib=memory_limit_mib)
    return Choice(backend, Mode.USERSPACE, f"user space ({found}): {why}")


def find_program(program: str = PROGRAM) -> Path | None:
    """The file that `program` means: a path, or a name to look up in PATH; None when there is none.

    For the name `wireguard-go` the release that we built goes first: distributions ship ones that are several times slower.
    """
    candidate = Path(program)
    if program == PROGRAM and os.access(built := Path.home() / BUILT_PROGRAM, os.X_OK):
        candidate = built
    elif "/" not in program:
        candidate = Path(shutil.which(program) or "/nonexistent")
    return candidate if candidate.is_file() and os.access(candidate, os.X_OK) else None


def _userspace(program: str) -> tuple[Path | None, list[str]]:
    """The program's file if everything is there that it needs, otherwise None and what is missing."""
    problems = []
    found = find_program(program)
    if found is None:
        where = "is not an executable file" if "/" in program else "is not in PATH"
        problems.append(f"{program} {where} (run scripts/install-wireguard-go, or say --wireguard-go=PATH)")
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        advice = {
            errno.ENOENT: "mount it into the container, or load the tun module",
            errno.ENODEV: "load the tun module",
        }.get(exc.errno or 0, "run as root, or allow the device to the container")
        problems.append(f"cannot open {_TUN}: {exc.strerror} ({advice})")
    if not _may_manage_networks():
        problems.append("this process may not manage network devices (give it CAP_NET_ADMIN)")
    return (found if not problems else None), problems


def _may_manage_networks() -> bool:
    """Whether CAP_NET_ADMIN is among the effective capabilities (proc(5), CapEff)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False
