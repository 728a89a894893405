"""Properties of the capsule parser: what is written is read, in any chunking, and garbage is a value or BadMessage."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent.carrier import capsule
from agent.carrier.capsule import CapsuleParser, Run
from agent.errors import BadMessage

BUFFER = bytearray(256 * 1024)


def feed(data: bytes, cuts: list[int], limit: int = 1 << 30) -> list[object]:
    parser = CapsuleParser(extensions=True)
    seen: list[object] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(edges):
        end = parser.restore(BUFFER)
        BUFFER[end : end + stop - start] = data[start:stop]
        end += stop - start
        while True:
            for item in parser.parse(BUFFER, end, limit):
                seen.extend(map(bytes, item.payloads) if isinstance(item, Run) else [item])
            if not parser.backlog:
                break
            end = parser.restore(BUFFER)
    return seen


sizes = st.sampled_from((0, 1, 32, 92, 148, 500, 500, 500, 1452))
payloads = st.builds(lambda size, fill: bytes([fill]) * size, sizes, st.integers(0, 255))
opaque = st.binary(min_size=8, max_size=8)
values = st.one_of(
    payloads,
    st.builds(capsule.Control, st.text(max_size=50)),
    st.builds(capsule.Ping, opaque),
    st.builds(capsule.Pong, opaque),
    st.builds(capsule.Ack, st.integers(0, 2**64 - 1)),
)


def encode(value: object) -> bytes:
    match value:
        case bytes():
            return capsule.head(len(value)) + value
        case capsule.Control(text):
            return capsule.encode_control(text)
        case capsule.Ping(opaque):
            return capsule.encode_ping(opaque)
        case capsule.Pong(opaque):
            return capsule.encode_pong(opaque)
        case capsule.Ack(received):
            return capsule.encode_ack(received)
    raise AssertionError(value)


@given(st.lists(values, max_size=30), st.lists(st.integers(0, 5000), max_size=6), st.sampled_from((1, 3, 1 << 30)))
def test_what_is_written_is_read_in_any_chunking(written: list[object], cuts: list[int], limit: int) -> None:
    assert feed(b"".join(map(encode, written)), cuts, limit) == written


@given(st.integers(0, 2000), st.sampled_from((1, 2, 4, 8)), st.integers(0, 2000))
def test_an_unknown_capsule_of_any_length_is_left_behind(length: int, width: int, missing: int) -> None:
    width = max(width, len(capsule.encode_varint(length)))
    encoded = (length | {1: 0, 2: 1, 4: 2, 8: 3}[width] << (8 * width - 2)).to_bytes(width, "big")
    data = b"\x21" + encoded + bytes(length)
    assert feed(data + capsule.encode_ping(bytes(8)), []) == [capsule.Ping(bytes(8))]
    cut = data[: len(data) - min(missing, length)]
    parser = CapsuleParser(extensions=True)
    assert parser.parse(bytearray(cut), len(cut)) == []
    assert parser.inside_capsule == (len(cut) < len(data))


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_garbage_is_a_value_or_bad_message(data: bytes, cuts: list[int]) -> None:
    try:
        whole: list[object] | None = feed(data, [])
    except BadMessage:
        whole = None
    try:
        pieces: list[object] | None = feed(data, cuts)
    except BadMessage:
        pieces = None
    assert pieces == whole
