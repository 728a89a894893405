import asyncio
import errno
import fcntl
import os
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import pytest

import ipam.stores.file as file_module
from agent.errors import Conflict, Retry, StoreError
from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.file import FileStore, UnreadableLedger
from ipam.stores.log import FORMAT_VERSION, HEADER_BYTES

T = TypeVar("T")

POLICY = Policy((Pool(IPv4Network("10.0.0.0/24")),))


def owner(name: str) -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, "uid")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def ensure(path: Path, *names: str) -> None:
    book = AddressBook(FileStore(path), POLICY)
    for name in names:
        run(book.ensure(owner(name), 0.0))


def names(path: Path) -> set[str]:
    ledger, _ = run(FileStore(path).read())
    return {allocation.owner.name for allocation in ledger}


def test_what_was_written_is_there_for_the_next_process(path: Path) -> None:
    ensure(path, "a", "b")
    ledger, version = run(FileStore(path).read())
    assert {a.owner.name: str(a.blocks[0]) for a in ledger} == {"a": "10.0.0.0", "b": "10.0.0.1"}
    assert run(FileStore(path).read())[1] == version
    assert path.stat().st_mode & 0o777 == 0o600


def test_reading_makes_no_file(path: Path) -> None:
    ledger, _ = run(FileStore(path).read())
    assert len(ledger) == 0
    assert list(path.parent.iterdir()) == []


def test_an_allocation_appends_and_does_not_rewrite(path: Path) -> None:
    ensure(path, *(f"n{n}" for n in range(100)))
    before, inode = path.stat().st_size, path.stat().st_ino
    ensure(path, "one-more")
    assert path.stat().st_ino == inode
    assert 0 < path.stat().st_size - before < 300


def test_a_log_of_many_changes_is_rewritten_and_stays_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "SPARE_LINES", 20)
    writer, reader = FileStore(path), FileStore(path)
    book = AddressBook(writer, POLICY)
    for n in range(100):
        run(book.ensure(owner("a"), float(n), expires=n + 3600.0))
        run(book.ensure(owner("b"), 0.0))
        ledger, version = run(reader.read())
        held = ledger.get(owner("a"))
        assert held is not None and held.expires == n + 3600.0
        assert run(writer.read())[1] == version
    assert len(path.read_bytes().splitlines()) <= 23
    assert not path.with_name("ledger.tmp").exists()


def test_a_torn_line_behind_the_committed_part_is_cut_off(path: Path) -> None:
    ensure(path, "a")
    good = path.read_bytes()
    path.write_bytes(good + b'8c736521 {"generation": 2, "pu')
    assert names(path) == {"a"}
    ensure(path, "b")
    assert names(path) == {"a", "b"}
    assert path.read_bytes()[HEADER_BYTES:].startswith(good[HEADER_BYTES:])


@pytest.mark.parametrize("keep", [0, 1, 100, HEADER_BYTES, HEADER_BYTES + 10, -30, -1])
def test_a_truncated_file_is_an_error_and_stays_as_it_is(path: Path, keep: int) -> None:
    ensure(path, "a", "b", "c")
    ledger, version = run(FileStore(path).read())
    path.write_bytes(path.read_bytes()[:keep])
    left = path.read_bytes()
    store = FileStore(path)
    for action in (store.read(), store.write(allocate(ledger, POLICY, owner("d"), 0.0)[0], version)):
        with pytest.raises(UnreadableLedger, match="restore it from a copy, or move it away") as caught:
            run(action)
        assert caught.value.retry is Retry.NEVER
    assert path.read_bytes() == left


def test_truncation_under_a_running_store_is_noticed(path: Path) -> None:
    store = FileStore(path)
    run(AddressBook(store, POLICY).ensure(owner("a"), 0.0))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UnreadableLedger, match="truncated"):
        run(store.read())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("127.0.0.1 localhost\n", "not the header of an address ledger"),
        (f'{{"format": "rhizome-ipam-log", "version": {FORMAT_VERSION + 1}}}', "upgrade this program"),
        ("", "it is empty"),
    ],
)
def test_foreign_and_newer_files_are_left_alone(path: Path, text: str, what: str) -> None:
    path.write_text(text)
    with pytest.raises(UnreadableLedger, match=what):
        ensure(path, "a")
    assert path.read_text() == text


def test_a_ledger_that_vanishes_is_not_an_empty_ledger(path: Path) -> None:
    store = FileStore(path)
    run(AddressBook(store, POLICY).ensure(owner("a"), 0.0))
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(UnreadableLedger, match="is gone"):
        run(store.read())
    path.with_name("elsewhere").rename(path)
    assert len(run(store.read())[0]) == 1


def test_an_older_copy_is_noticed(path: Path) -> None:
    store = FileStore(path)
    book = AddressBook(store, POLICY)
    run(book.ensure(owner("a"), 0.0))
    copy = path.read_bytes()
    run(book.ensure(owner("b"), 0.0))
    path.with_name("copy").write_bytes(copy)
    path.with_name("copy").replace(path)
    with pytest.raises(UnreadableLedger, match=r"truncated|replaced by another or an older ledger"):
        run(store.read())


def test_another_ledger_in_its_place_is_noticed(path: Path) -> None:
    store = FileStore(path)
    run(AddressBook(store, POLICY).ensure(owner("a"), 0.0))
    ensure(path.with_name("other"), *"abcdef")
    path.with_name("other").replace(path)
    with pytest.raises(UnreadableLedger, match=r"generation 6, known is 1"):
        run(store.read())


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no directory; make it or name another file"):
        ensure(tmp_path / "missing" / "ledger", "a")
    with pytest.raises(StoreError, match="that is a directory"):
        ensure(tmp_path, "a")


def test_a_lock_that_is_never_released_is_an_error_in_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "LOCK_TIMEOUT_S", 0.05)
    ensure(path, "a")
    with path.with_name("ledger.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process has held"):
            ensure(path, "b")
        assert names(path) == {"a"}  # readers do not wait
    ensure(path, "b")


class Killed(BaseException):
    """The process dies here."""


class Disk:
    """Every call of os that changes something on disk, counted. The `fail_at`-th does `failure` instead."""

    CALLS = ("pwrite", "ftruncate", "fsync", "fdatasync", "replace")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fail_at = -1
        self.failure: Callable[[str, tuple[Any, ...]], None] = lambda _name, _args: None
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.fail_at:
                if name == "pwrite":  # the half of it arrives
                    real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                self.failure(name, args)
            return real(*args, **kwargs)

        return call

    def arm(self, fail_at: int, failure: Callable[[str, tuple[Any, ...]], None]) -> None:
        self.calls, self.fail_at, self.failure = [], fail_at, failure


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with monkeypatch.context() as patch:
        yield Disk(patch)


def kill(_name: str, _args: tuple[Any, ...]) -> None:
    raise Killed


def prepare(path: Path, situation: str) -> Ledger:
    """The ledger in the file that a test is about to change."""
    store = FileStore(path)
    ledger, version = store._read()
    if situation == "missing":
        return ledger
    for name in "abc":
        ledger, _ = allocate(ledger, POLICY, owner(name), 0.0)
        store._write(ledger, version)
        ledger, version = store._read()
    if situation == "torn":
        with path.open("ab") as out:
            out.write(b"0123abcd {")
    return ledger


def content(ledger: Ledger) -> object:
    return {(a.owner.name, a.blocks, a.generation, a.rests_until) for a in ledger}


SITUATIONS = ["missing", "append", "torn", "rewrite"]


def sweep(
    path: Path, situation: str, disk: Disk, failure: Callable[[str, tuple[Any, ...]], None]
) -> Iterator[tuple[str, FileStore, Ledger, Ledger]]:
    """Make the same write again and again, failing at its first, second, ... call, until it succeeds."""
    for fail_at in range(20):
        here = path.with_name(f"{situation}-{fail_at}")
        disk.arm(-1, failure)
        before = prepare(here, situation)
        store = FileStore(here)
        ledger, version = store._read()
        after, _ = allocate(ledger, POLICY, owner("new"), 0.0)
        if situation != "missing":
            after = release(after, POLICY, owner("a"), 0.0)
        store._sync_failed = situation == "rewrite"  # as after an I/O error: the next write replaces the file
        disk.arm(fail_at, failure)
        try:
            store._write(after, version)
        except (Killed, StoreError):
            called = disk.calls[fail_at]
            disk.arm(-1, failure)
            yield called, store, before, after
        else:
            assert len(disk.calls) <= fail_at
            return
    raise AssertionError("the sweep does not end")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_crash_at_any_point_leaves_the_old_or_the_new_ledger(path: Path, situation: str, disk: Disk) -> None:
    seen = []
    for called, dead, before, after in sweep(path, situation, disk, kill):
        seen.append(called)
        survivor = FileStore(dead._path)
        ledger, version = survivor._read()
        assert content(ledger) in (content(before), content(after))
        ledger, again = allocate(ledger, POLICY, owner("new"), 1.0)
        if (known := after.get(owner("new"))) is not None:
            assert again.blocks == known.blocks
        ledger, _ = allocate(ledger, POLICY, owner("later"), 1.0)
        survivor._write(ledger, version)
        assert content(FileStore(dead._path)._read()[0]) == content(ledger)
    expected = {
        "missing": ["pwrite", "fsync", "replace", "fsync"],
        "append": ["pwrite", "fdatasync", "pwrite"],
        "torn": ["ftruncate", "pwrite", "fdatasync", "pwrite"],
        "rewrite": ["pwrite", "fsync", "pwrite", "fsync", "replace", "fsync"],
    }
    assert seen == expected[situation]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_disk_error_at_any_point_loses_nothing(path: Path, situation: str, code: int, disk: Disk) -> None:
    def fail(name: str, _args: tuple[Any, ...]) -> None:
        raise OSError(code, os.strerror(code))

    words = {errno.ENOSPC: "the disk is full", errno.EIO: "I/O error", errno.EROFS: "read-only"}
    for _called, store, before, after in sweep(path, situation, disk, fail):
        ledger, version = store._read()
        assert content(ledger) in (content(before), content(after))
        assert not store._path.with_name(store._path.name + ".tmp").exists()
        ledger, _ = allocate(ledger, POLICY, owner("later"), 1.0)
        disk.arm(0, fail)
        with pytest.raises(StoreError, match=words[code]) as caught:
            store._write(ledger, version)
        assert caught.value.retry is Retry.BACKOFF
        disk.arm(-1, fail)
        ledger, version = store._read()
        ledger, _ = allocate(ledger, POLICY, owner("later"), 1.0)
        if ledger.generation > store._read()[0].generation:
            store._write(ledger, version)
        assert content(FileStore(store._path)._read()[0]) == content(ledger)


def test_after_a_failed_sync_the_whole_file_is_written_anew(path: Path, disk: Disk) -> None:
    store = FileStore(path)
    store._write(allocate(Ledger(), POLICY, owner("a"), 0.0)[0], store._read()[1])

    def fail(_name: str, _args: tuple[Any, ...]) -> None:
        raise OSError(errno.EIO, "I/O error")

    ledger, version = store._read()
    disk.arm(1, fail)
    with pytest.raises(StoreError):
        store._write(allocate(ledger, POLICY, owner("b"), 0.0)[0], version)
    assert disk.calls == ["pwrite", "fdatasync"]
    disk.arm(-1, fail)
    ledger, version = store._read()
    store._write(allocate(ledger, POLICY, owner("c"), 0.0)[0], version)
    assert disk.calls == ["pwrite", "fsync", "pwrite", "fsync", "replace", "fsync"]
    ledger, version = store._read()
    store._write(allocate(ledger, POLICY, owner("d"), 0.0)[0], version)
    assert disk.calls[6:] == ["pwrite", "fdatasync", "pwrite"]


async def test_many_tasks_and_two_instances_share_one_file(path: Path) -> None:
    books = [AddressBook(FileStore(path), POLICY, attempts=100) for _ in range(2)]
    allocations = await asyncio.gather(*(books[n % 2].ensure(owner(f"n{n}"), 0.0) for n in range(40)))
    assert len({a.blocks for a in allocations}) == 40
    assert {a.owner: a for a in (await FileStore(path).read())[0]} == {a.owner: a for a in allocations}


async def test_a_stale_writer_loses(path: Path) -> None:
    one, two = FileStore(path), FileStore(path)
    (mine, mine_version), (theirs, theirs_version) = await one.read(), await two.read()
    await one.write(allocate(mine, POLICY, owner("a"), 0.0)[0], mine_version)
    with pytest.raises(Conflict, match="was changed since it was read"):
        await two.write(allocate(theirs, POLICY, owner("b"), 0.0)[0], theirs_version)
    assert {a.owner.name for a in (await one.read())[0]} == {"a"}
