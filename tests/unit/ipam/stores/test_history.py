import asyncio
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest

import ipam.stores.file
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.file import FileStore
from ipam.stores.history import events
from ipam.stores.log import history_path

POLICY = Policy((Pool(IPv4Network("10.0.0.0/30")),))
FIRST = ip_address("10.0.0.0")


def owner(name: str) -> Owner:
    return Owner("k", "ns", name, "uid")


def told(path: Path) -> list[tuple[str, str]]:
    return [(event.what, event.owner.name) for event in events(path, FIRST)]


async def life(path: Path, rounds: int = 1) -> None:
    """One address, held by one after the other, and given back for good."""
    book = AddressBook(FileStore(path), POLICY)
    for n in range(rounds):
        now = n * 1000.0
        await book.ensure(owner(f"o{n}"), now)
        await book.ensure(owner(f"o{n}"), now + 1.0, expires=now + 500.0)
        await book.release(owner(f"o{n}"), now + 2.0)


def test_who_had_an_address_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    asyncio.run(life(path, 2))
    assert told(path) == [("given", "o0"), ("given back", "o0"), ("free", "o0"), ("given", "o1"), ("given back", "o1")]
    assert all(event.at is not None and event.at > 1e9 for event in events(path, FIRST))
    assert events(path, ip_address("10.0.0.1")) == []


def test_nothing_is_forgotten_when_the_log_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    asyncio.run(life(long, 12))
    monkeypatch.setattr(ipam.stores.file, "SPARE_LINES", 4)
    asyncio.run(life(short, 12))
    assert short.stat().st_size < long.stat().st_size / 2
    assert told(short) == told(long)
    assert not history_path(long).exists()
    # A crash after the journal was written and before the log was replaced: the journal has some lines twice.
    history = history_path(short)
    history.write_bytes(history.read_bytes() + b"".join(history.read_bytes().splitlines(True)[-3:]) + b"0123 torn")
    assert told(short) == told(long)
