"""What is written down of a lab, so that another process can remove it: `python -m lab down`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from lab.namespaces import delete_namespace

_FILE = "lab.json"
_DIRECTORY_PREFIX = "rhizome-lab-"
_NETNS = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Record:
    """One lab: whose it is, what it made. `owner_started` tells the owner from a later process with the same id."""

    directory: str
    prefix: str
    namespaces: tuple[str, ...]
    pauses: tuple[int, ...]
    proxy: str
    owner: int
    owner_started: str
    kept: bool = False

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raises OSError or ValueError when there is none."""
        read = json.loads((directory / _FILE).read_text())
        return cls(**read | {"namespaces": tuple(read["namespaces"]), "pauses": tuple(read["pauses"])})

    def save(self) -> None:
        (Path(self.directory) / _FILE).write_text(json.dumps(asdict(self)))

    def keep(self) -> None:
        """The owner will end and wants the lab to stay."""
        replace(self, kept=True).save()

    def abandoned(self) -> bool:
        """Nobody will remove it by himself."""
        return self.kept or started(self.owner) != self.owner_started

    def pause(self, machine: str) -> int:
        """The process that holds the mount namespace of `machine`, e.g. "seed"; `node` and `pod` mean the first one.
        Raises KeyError for a machine that is not there."""
        full = {f"{self.prefix}{machine}", f"{self.prefix}{machine}1"}
        for name, pid in zip(self.namespaces, self.pauses, strict=True):
            if name in full:
                return pid
        raise KeyError(machine)


def claim() -> tuple[Path, str]:
    """A new directory of one's own, and a prefix that no namespace has: `rz<pid>-`, then `rz<pid>.2-`..."""
    count = 1
    while True:
        prefix = f"rz{os.getpid()}-" if count == 1 else f"rz{os.getpid()}.{count}-"
        directory = Path(tempfile.gettempdir()) / f"{_DIRECTORY_PREFIX}{prefix[:-1]}"
        with suppress(FileExistsError):
            directory.mkdir()
            if not any(_NETNS.glob(f"{prefix}*")):
                return directory, prefix
            directory.rmdir()
        count += 1


def records() -> Iterator[Record]:
    """Every lab on this host that has one, running or not."""
    for directory in sorted(Path(tempfile.gettempdir()).glob(f"{_DIRECTORY_PREFIX}*")):
        with suppress(OSError, ValueError):
            yield Record.load(directory)


def remove_abandoned() -> Sequence[Record]:
    """Remove the labs that were kept and those whose process is gone; return them. Running ones are left alone."""
    found = [record for record in records() if record.abandoned()]
    for record in found:
        for name in record.namespaces:
            delete_namespace(name)
        shutil.rmtree(record.directory)
    return found


def started(pid: int) -> str:
    """When a process started, in the kernel's words; empty for one that is not there, or has ended and is not yet reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # from field 3 on; the name, field 2, may contain anything
    return "" if fields[0] in "ZX" else fields[19]
