import json
import zlib
from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.allocate import allocate, release
from ipam.ledger import Ledger
from ipam.model import Owner, Policy, Pool
from ipam.stores.log import HEADER_BYTES, BadLog, Header, parse_header, replay, snapshot, transaction

POLICY = Policy((Pool(IPv4Network("10.0.0.0/24")),))


def owner(name: str) -> Owner:
    return Owner("k", "ns", name, "uid")


def ledgers() -> tuple[list[Ledger], list[bytes]]:
    """A short history: the ledger after each transaction, and the lines that lead there."""
    history, lines = [Ledger()], []
    for n in range(8):
        last = history[-1]
        after = release(last, POLICY, owner(f"o{n - 2}"), n * 200.0) if n % 4 == 3 else last
        after, _ = allocate(after, POLICY, owner(f"o{n}"), n * 200.0, n * 200.0 + 500 if n % 2 else None)
        put, gone = after.owners.changes_since(last.owners)
        history.append(after)
        lines.append(transaction(after.generation, put.values(), gone))
    return history, lines


HISTORY, LINES = ledgers()
DATA = b"".join(LINES)


def content(ledger: Ledger) -> object:
    return ledger.generation, {a.owner: a for a in ledger}, dict(ledger.used.items())


def test_a_header_and_its_line() -> None:
    header = Header("a" * 32, 1 << 40, 1 << 50)
    assert len(header.line()) == HEADER_BYTES
    assert parse_header(header.line()) == header


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"", "it is empty"),
        (b"\0" * HEADER_BYTES, "not the header of an address ledger"),
        (b"127.0.0.1 localhost\n" * 20, "not the header"),
        (b"[" * HEADER_BYTES, "not the header"),
        (b'{"format": "other", "version": 1}', "its format is 'other'"),
        (b'{"format": "rhizome-ipam-log", "version": 2}', "version is 2 and this program knows 1; upgrade"),
        (b'{"format": "rhizome-ipam-log", "version": "x"}', "its format is"),
        (b'{"format": "rhizome-ipam-log", "version": 1}', "damaged"),
        (Header("a", 0, 256).line()[:-1], "damaged"),
        (Header("a", 0, 0).line(), "damaged"),
    ],
)
def test_headers_that_are_not_ours(line: bytes, what: str) -> None:
    with pytest.raises(BadLog, match=what):
        parse_header(line)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_header_is_a_value_or_an_error(line: bytes) -> None:
    with pytest.raises(BadLog):
        parse_header(line)


def test_replay_from_any_point_leads_to_the_same_ledger() -> None:
    for start, ledger in enumerate(HISTORY):
        rest = b"".join(LINES[start:])
        replayed = replay(ledger, rest, len(rest))
        assert content(replayed.ledger) == content(HISTORY[-1])
        assert (replayed.size, replayed.lines) == (len(rest), len(LINES) - start)


def test_a_snapshot_is_the_ledger() -> None:
    for ledger in HISTORY:
        data = b"".join(snapshot(ledger))
        assert content(replay(Ledger(), data, len(data)).ledger) == content(ledger)


@settings(deadline=None)
@given(st.integers(0, len(DATA)))
def test_a_tail_that_was_never_committed_is_ignored(length: int) -> None:
    whole = max(n for n in range(len(LINES) + 1) if len(b"".join(LINES[:n])) <= length)
    size = len(b"".join(LINES[:whole]))
    replayed = replay(Ledger(), DATA[:length], size)
    assert content(replayed.ledger) == content(HISTORY[whole])
    assert replayed.size == size


@settings(deadline=None)
@given(st.integers(0, len(DATA) - 1))
def test_a_missing_part_that_was_committed_is_an_error(length: int) -> None:
    with pytest.raises(BadLog, match="truncated or damaged"):
        replay(Ledger(), DATA[:length], len(DATA))


@settings(deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_an_error(at: int, flip: int) -> None:
    data = bytearray(DATA)
    data[at] ^= flip
    with pytest.raises(BadLog):
        replay(Ledger(), bytes(data), len(DATA))


def signed(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"generation": "x"},
        {"generation": 1e999},
        {"generation": 1, "put": 5},
        {"generation": 1, "put": [5]},
        {"generation": 1, "drop": [{"kind": "k"}]},
        {"generation": 1, "put": [{"owner": {}}]},
    ],
)
def test_a_signed_line_of_something_else_is_an_error(fields: object) -> None:
    with pytest.raises(BadLog, match="no transaction"):
        replay(Ledger(), signed(json.dumps(fields).encode()), 0)


def test_a_ledger_that_contradicts_itself_is_an_error() -> None:
    _, a = allocate(Ledger(), POLICY, owner("a"), 0.0)
    _, b = allocate(Ledger(), POLICY, owner("b"), 0.0)
    with pytest.raises(BadLog, match=r"contradicts itself: 10\.0\.0\.0 belongs to"):
        replay(Ledger(), transaction(1, [a, b]), 0)
    with pytest.raises(BadLog, match="generation 1 comes after 2"):
        replay(Ledger(), transaction(2, [a]) + transaction(1, [b]), 0)
