"""The codec against the worked examples of RFC 9297, 9298 and 9000, and against peers that break the rules."""

from __future__ import annotations

import pytest

from agent.carrier import capsule
from agent.carrier.capsule import Ack, CapsuleParser, Control, Item, Ping, Pong, Run
from agent.errors import BadMessage


def parse(data: bytes, *, extensions: bool = True, chunk: int = 1 << 20) -> tuple[list[Item], CapsuleParser]:
    """Feed `data` in chunks through one shared buffer; runs are returned with their payloads copied."""
    parser = CapsuleParser(extensions=extensions)
    buffer = bytearray(256 * 1024)
    items: list[Item] = []
    for start in range(0, len(data), chunk):
        end = parser.restore(buffer)
        piece = data[start : start + chunk]
        buffer[end : end + len(piece)] = piece
        for item in parser.parse(buffer, end + len(piece)):
            if isinstance(item, Run):
                item = Run(item.segment_bytes, item.total_bytes, [memoryview(bytes(p)) for p in item.payloads])
            items.append(item)
    return items, parser


def payloads(items: list[Item]) -> list[bytes]:
    return [bytes(p) for item in items if isinstance(item, Run) for p in item.payloads]


def datagram(payload: bytes) -> bytes:
    return capsule.head(len(payload)) + payload


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("3f", 63),
        ("4040", 64),
        ("7fff", 16383),
        ("80004000", 16384),
        ("bfffffff", 2**30 - 1),
        ("c2197c5eff14e88c", 151288809941952652),
        ("9d7f3e7d", 494878333),
        ("7bbd", 15293),
        ("25", 37),
    ],
)
def test_varints_of_rfc_9000(encoded: str, value: int) -> None:
    assert capsule.encode_varint(value).hex() == encoded


def test_a_varint_has_62_bits() -> None:
    assert capsule.encode_varint(2**62 - 1).hex() == "ff" * 8
    with pytest.raises(ValueError, match="62 bits"):
        capsule.encode_varint(2**62)


@pytest.mark.parametrize("kind", [capsule.CONTROL, capsule.PING, capsule.PONG, capsule.ACK])
def test_our_types_are_not_grease_and_take_four_bytes(kind: int) -> None:
    assert (kind - 0x17) % 0x29 != 0
    assert len(capsule.encode_varint(kind)) == 4


@pytest.mark.parametrize(
    ("size", "encoded"),
    [(32, "00402100"), (148, "00409500"), (1452, "0045ad00"), (0, "00400100"), (16000, "007e8100")],
)
def test_the_constant_head(size: int, encoded: str) -> None:
    assert capsule.head(size).hex() == encoded


KEEPALIVE = bytes.fromhex("0400000011223344" + "00" * 8 + "000102030405060708090a0b0c0d0e0f")


@pytest.mark.parametrize(
    "encoded",
    [
        "002100",
        "00402100",
        "4000402100",
        "0080000021" + "00",
        "c000000000000000" + "2100",
        "00c000000000000021" + "00",
        "00224000",
        "00" + "24" + "80000000",
        "0028" + "c000000000000000",
    ],
)
def test_all_forms_of_a_varint_are_read(encoded: str) -> None:
    for chunk in (1, 3, 1000):
        items, parser = parse(bytes.fromhex(encoded) + KEEPALIVE, chunk=chunk)
        assert payloads(items) == [KEEPALIVE]
        assert not parser.inside_capsule
        assert parser.received_bytes == 32


def test_an_empty_datagram_is_one() -> None:
    items, parser = parse(bytes.fromhex("000100") + datagram(b"") + datagram(b"x"))
    assert payloads(items) == [b"", b"", b"x"]
    assert [len(i.payloads) for i in items if isinstance(i, Run)] == [1, 1, 1]
    assert parser.received_bytes == 1


@pytest.mark.parametrize(
    "data",
    ["0003026162", "409203616263", "00054002616263", "80ffffff00", "ffffffffffffffff" + "03616263"],
    ids=["unknown context", "grease", "two-byte context", "unknown type, empty", "largest type"],
)
def test_what_is_unknown_is_skipped(data: str) -> None:
    for chunk in (1, 2, 1000):
        items, parser = parse(datagram(b"before") + bytes.fromhex(data) + datagram(b"behind"), chunk=chunk)
        assert payloads(items) == [b"before", b"behind"]
        assert parser.skipped == 1


def test_an_unknown_capsule_of_any_length_is_not_stored() -> None:
    data = capsule.encode_varint(0x1234) + capsule.encode_varint(3_000_000)
    parser = CapsuleParser(extensions=True)
    buffer = bytearray(65536)
    buffer[: len(data)] = data
    assert parser.parse(buffer, len(buffer)) == []
    assert parser.restore(buffer) == 0 and parser.inside_capsule
    items, parser = parse(data + bytes(3_000_000) + datagram(b"behind"), chunk=50_000)
    assert payloads(items) == [b"behind"] and not parser.inside_capsule


def test_our_capsules() -> None:
    data = (
        capsule.encode_control('{"type":"enröll"}')
        + capsule.encode_ping(b"01234567")
        + capsule.encode_pong(b"76543210")
        + capsule.encode_ack(2**40)
        + capsule.encode_control("")
        + capsule.encode_control("x" * capsule.MAX_CONTROL_BYTES)
    )
    expected = [
        Control('{"type":"enröll"}'),
        Ping(b"01234567"),
        Pong(b"76543210"),
        Ack(2**40),
        Control(""),
        Control("x" * capsule.MAX_CONTROL_BYTES),
    ]
    for chunk in (1, 7, 1 << 20):
        assert parse(data, chunk=chunk)[0] == expected
    assert capsule.encode_ping(b"01234567").hex() == "8052485b08" + b"01234567".hex()


def test_without_extensions_our_capsules_are_unknown_ones() -> None:
    data = capsule.encode_ping(b"01234567") + capsule.encode_varint(capsule.PING) + b"\x01x" + datagram(b"d")
    items, parser = parse(data, extensions=False)
    assert payloads(items) == [b"d"] and len(items) == 1
    assert parser.skipped == 2


def test_a_control_message_has_a_limit_when_sent() -> None:
    with pytest.raises(ValueError, match="65536"):
        capsule.encode_control("ö" * (capsule.MAX_CONTROL_BYTES // 2) + "x")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x00\x00", "context"),
        (b"\x00\x01\x40", "context"),
        (b"\x00\x03\xc0\x00\x00", "context"),
        (b"\x00" + capsule.encode_varint(65_529) + b"\x00", "65528"),
        (capsule.encode_varint(capsule.PING) + b"\x07", "7 bytes"),
        (capsule.encode_varint(capsule.PONG) + b"\x09", "9 bytes"),
        (capsule.encode_varint(capsule.ACK) + b"\x00", "0 bytes"),
        (capsule.encode_varint(capsule.CONTROL) + capsule.encode_varint(65_537), "65537 bytes"),
        (capsule.encode_varint(capsule.CONTROL) + b"\x02\xc3\x28", "UTF-8"),
    ],
)
def test_malformed(data: bytes, says: str) -> None:
    for chunk in (1, 1000):
        with pytest.raises(BadMessage, match=says):
            parse(datagram(b"fine") + data, chunk=chunk)


def test_a_datagram_too_large_for_us_is_counted_and_skipped() -> None:
    large = b"\x00" + capsule.encode_varint(1 + 20_000) + b"\x00" + bytes(20_000)
    largest = b"\x00" + capsule.encode_varint(1 + 65_527) + b"\x00" + bytes(65_527)
    for chunk in (100, 1 << 20):
        items, parser = parse(large + datagram(b"x") + largest + datagram(b"y"), chunk=chunk)
        assert payloads(items) == [b"x", b"y"]
        assert parser.oversize == 2
        assert parser.received_bytes == 20_000 + 65_527 + 2


def test_the_largest_datagram_we_send_is_read() -> None:
    payload = bytes(range(256)) * 64
    items, _ = parse(datagram(payload[: capsule.MAX_DATAGRAM_BYTES]))
    assert payloads(items) == [payload[: capsule.MAX_DATAGRAM_BYTES]]


def sizes(items: list[Item]) -> list[list[int]]:
    return [[len(p) for p in item.payloads] for item in items if isinstance(item, Run)]


def test_runs_are_what_one_sendmsg_with_udp_segment_takes() -> None:
    stream = b"".join(datagram(bytes(n)) for n in (100, 100, 60, 60, 60, 100, 100, 7, 0, 100, 101))
    assert sizes(parse(stream)[0]) == [[100, 100, 60], [60, 60], [100, 100, 7], [0], [100], [101]]
    many = parse(datagram(bytes(10)) * 150)[0]
    assert sizes(many) == [[10] * 64, [10] * 64, [10] * 22]
    wide = parse(datagram(bytes(1452)) * 100)[0]
    assert sizes(wide) == [[1452] * 45, [1452] * 45, [1452] * 10]
    assert all(i.total_bytes == sum(map(len, i.payloads)) <= 65_507 for i in wide if isinstance(i, Run))


def test_a_run_never_reaches_behind_what_was_read() -> None:
    parser = CapsuleParser(extensions=True)
    buffer = bytearray(datagram(b"a" * 50) * 4)
    (run,) = parser.parse(buffer, 54 * 2 + 10)
    assert isinstance(run, Run) and len(run.payloads) == 2
    assert parser.restore(buffer) == 10


def test_the_limit_bounds_one_turn() -> None:
    stream = datagram(b"abc") * 100 + capsule.encode_ping(bytes(8)) * 100 + b"\x21\x00" * 100
    parser = CapsuleParser(extensions=True)
    buffer = bytearray(65536)
    buffer[: len(stream)] = stream
    end, turns, seen = len(stream), 0, 0
    while True:
        items = parser.parse(buffer, end, limit=10)
        seen += sum(len(i.payloads) if isinstance(i, Run) else 1 for i in items)
        turns += 1
        if not parser.backlog:
            break
        end = parser.restore(buffer)
    assert (turns, seen, parser.skipped) == (30, 200, 100)


def test_early_bytes_are_parsed_first() -> None:
    parser = CapsuleParser(extensions=True, early=datagram(b"early") + b"\x00")
    assert parser.backlog
    buffer = bytearray(1024)
    end = parser.restore(buffer)
    (run,) = parser.parse(buffer, end)
    assert isinstance(run, Run) and bytes(run.payloads[0]) == b"early"
    assert parser.inside_capsule and not parser.backlog
