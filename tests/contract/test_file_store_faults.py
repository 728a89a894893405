"""The file store on a disk that is full, read-only or torn away, and under a process that is killed at its k-th system call, for every k."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path

import pytest

import ipam.stores.file
from agent.errors import Retry, StoreError
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.file import FileStore, UnreadableLedger
from ipam.stores.history import events
from ipam.usage import contradictions

POLICY = Policy((Pool(IPv4Network("10.0.0.0/20")),), quarantine_s=1.0)


def owner(name: str) -> Owner:
    return Owner("k", "ns", name, "uid")


def ensure(path: Path, *names: str, store: FileStore | None = None) -> list[str]:
    book = AddressBook(store or FileStore(path), POLICY)

    async def give() -> list[str]:
        return [str((await book.ensure(owner(name), 0.0)).blocks[0]) for name in names]

    return asyncio.run(give())


def read(path: Path) -> Ledger:
    return asyncio.run(FileStore(path).read())[0]


@contextmanager
def small_disk(where: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own of this size."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "rhizome-test", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def test_a_full_disk_loses_nothing_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appended to and written anew until nothing fits; every grant that was told is there, and it goes on when there is room."""
    monkeypatch.setattr(ipam.stores.file, "SPARE_LINES", 20)
    with small_disk(tmp_path / "disk", 64) as disk:
        path, told = disk / "ledger", dict[str, str]()
        store = FileStore(path)

        def fill() -> None:
            for n in range(10_000):
                told[f"n{n}"] = ensure(path, f"n{n}", store=store)[0]

        with pytest.raises(StoreError, match="the disk is full; free some space") as caught:
            fill()
        assert caught.value.retry is Retry.BACKOFF
        assert len(told) > 20
        for _ in range(3):
            with pytest.raises(StoreError, match="the disk is full"):
                ensure(path, "one more", store=store)
            assert told.items() <= {a.owner.name: str(a.blocks[0]) for a in read(path)}.items()
        assert ensure(path, "n3", store=store) == [told["n3"]]  # who has one keeps it
        path.with_name("ledger.history").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=256k", disk], check=True)
        told["later"] = ensure(path, "later", store=store)[0]
        ledger = read(path)
        assert told.items() <= {a.owner.name: str(a.blocks[0]) for a in ledger}.items()
        assert not contradictions(ledger)


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        path = disk / "ledger"
        store = FileStore(path)
        ensure(path, "a", store=store)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StoreError, match=r"read-only; mount it writable.*Addresses given out stay valid"):
            ensure(path, "b", store=store)
        assert ensure(path, "a", store=store) == ["10.0.0.0"]  # reads go on
        assert ensure(path, "a") == ["10.0.0.0"]
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert ensure(path, "b", store=store) == ["10.0.0.1"]


def test_every_length_of_a_truncated_file(tmp_path: Path) -> None:
    """Cut anywhere: an error, or, behind the last committed transaction, what it was."""
    path = tmp_path / "ledger"
    ensure(path, *"abcdef")
    whole, size = path.read_bytes(), path.stat().st_size
    for length in range(0, size, 7):
        cut = tmp_path / f"cut-{length}"
        cut.write_bytes(whole[:length])
        with pytest.raises(UnreadableLedger, match="It was left as it is and nothing is granted"):
            ensure(cut, "g")
        assert cut.read_bytes() == whole[:length]


#: Makes one change to the ledger at argv[1] and is killed at the argv[2]-th call that changes the disk; a write gets half-way there.
VICTIM = """
import asyncio, os, signal, sys
from ipaddress import IPv4Network
from pathlib import Path
import ipam.stores.file
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.file import FileStore

left = int(sys.argv[2])
ipam.stores.file.SPARE_LINES = int(sys.argv[3])

def counted(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            if name == "pwrite":
                real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)

for name in ("pwrite", "ftruncate", "fsync", "fdatasync", "replace"):
    counted(name)
policy = Policy((Pool(IPv4Network("10.0.0.0/20")),), quarantine_s=1.0)
asyncio.run(AddressBook(FileStore(Path(sys.argv[1])), policy).ensure(Owner("k", "ns", "new", "uid"), 0.0))
print("done")
"""


@pytest.mark.parametrize(("situation", "calls"), [("missing", 4), ("append", 3), ("torn", 4), ("rewrite", 6)])
def test_sigkill_at_every_call(tmp_path: Path, situation: str, calls: int) -> None:
    for fatal in range(calls + 1):
        path = tmp_path / f"{situation}-{fatal}"
        if situation != "missing":
            ensure(path, *"abc")
        if situation == "rewrite":  # many changes, few allocations
            for n in range(12):
                asyncio.run(AddressBook(FileStore(path), POLICY).ensure(owner("a"), 0.0, expires=1e9 + n))
        if situation == "torn":
            with path.open("ab") as out:
                out.write(b"0123abcd {")
        before = {a.owner.name for a in read(path)}
        spare = "1" if situation == "rewrite" else "1000"
        words = [sys.executable, "-c", VICTIM, str(path), str(fatal), spare]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == (0 if fatal == calls else -signal.SIGKILL), done.stderr
        after = {a.owner.name: str(a.blocks[0]) for a in read(path)}
        assert set(after) in (before, before | {"new"})
        if done.returncode == 0:
            assert "new" in after
        assert ensure(path, "new", "later") == [after.get("new", f"10.0.0.{len(before)}"), f"10.0.0.{len(before) + 1}"]
        told = [event.owner.name for event in events(path, POLICY.pools[0].network[len(before)])]
        assert told == ["new"]  # once, also where it was written twice


def test_a_foreign_file_is_never_touched(tmp_path: Path) -> None:
    for text in (b"", b"\0" * 512, b"127.0.0.1 localhost\n" * 30, b'{"format": "rhizome-ipam-log", "version": 99}'):
        path = tmp_path / "hosts"
        path.write_bytes(text)
        with suppress(UnreadableLedger):
            ensure(path, "a")
            raise AssertionError("it wrote into a file that is not its own")
        assert path.read_bytes() == text
