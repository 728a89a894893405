"""Any bytes in any chunking -> the same values or BadMessage, never another exception, never a hang, never much stored.

python -m tests.fuzz.fuzz_capsule --seconds 60 [--seed N]: prints how many inputs it tried; exits 1 with the input on a finding.
"""

from __future__ import annotations

import random
import sys

from agent.carrier import capsule
from agent.carrier.capsule import CapsuleParser, Item, Run
from agent.errors import BadMessage
from tests.fuzz.driver import drive

BUFFER = bytearray(256 * 1024)
KINDS = (capsule.DATAGRAM, capsule.CONTROL, capsule.PING, capsule.PONG, capsule.ACK, 0x17, 0x40, 2**62 - 1)
EDGES = (0, 1, 2, 7, 8, 9, 31, 32, 63, 64, 148, 1452, 16000, 16001, 65527, 65528, 65536, 65537, 2**30, 2**62 - 1)


def varint(rng: random.Random, value: int) -> bytes:
    """Any of the encodings that hold `value`."""
    shortest = capsule.encode_varint(value)
    size = rng.choice([n for n in (1, 2, 4, 8) if n >= len(shortest)])
    return (value | {1: 0, 2: 1, 4: 2, 8: 3}[size] << (8 * size - 2)).to_bytes(size, "big")


def one_capsule(rng: random.Random) -> bytes:
    kind = rng.choice(KINDS)
    if kind == capsule.DATAGRAM and rng.random() < 0.7:
        size = rng.choice((0, 1, 20, 20, 20, 32, 100, 100, rng.randrange(300)))
        if rng.random() < 0.8:
            return capsule.head(size) + rng.randbytes(size)
        context = varint(rng, rng.choice((0, 0, 0, 2, 64)))
        return varint(rng, kind) + varint(rng, size + len(context)) + context + rng.randbytes(size)
    own = {capsule.PING: 8, capsule.PONG: 8, capsule.ACK: 8}.get(kind, rng.randrange(40))
    length = own if rng.random() < 0.9 else rng.choice(EDGES)
    return varint(rng, kind) + varint(rng, length) + rng.randbytes(min(length, own))


def stream(rng: random.Random) -> bytes:
    """A few capsules, mostly right; in a third of the cases bent."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(60))
    data = bytearray(b"".join(one_capsule(rng) * rng.choice((1, 1, 1, 3, 70)) for _ in range(rng.randrange(1, 6))))
    if rng.random() < 0.33 and data:
        for _ in range(rng.randrange(1, 4)):
            where = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[where] ^= 1 << rng.randrange(8)
                case 1:
                    data[where] = rng.choice((0x00, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xFF))
                case 2:
                    del data[where : where + rng.randrange(1, 9)]
                case _:
                    data[where:where] = rng.randbytes(rng.randrange(1, 9))
            if not data:
                break
    return bytes(data)


def outcome(data: bytes, buffer: bytearray, cuts: list[int], limit: int, extensions: bool) -> list[object]:
    """What comes out, in a form that does not depend on the chunking."""
    parser = CapsuleParser(extensions=extensions)
    seen: list[object] = []
    try:
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            end = parser.restore(buffer)
            assert end <= capsule.MAX_STORED_BYTES + (stop - start)
            buffer[end : end + stop - start] = data[start:stop]
            end += stop - start
            while True:
                flatten(parser.parse(buffer, end, limit), seen)
                if not parser.backlog:
                    break
                end = parser.restore(buffer)
    except BadMessage:
        seen.append(BadMessage)
        return seen
    assert parser.received_bytes >= sum(len(item) for item in seen if isinstance(item, bytes))
    return [*seen, parser.received_bytes, parser.skipped, parser.oversize, parser.inside_capsule]


def flatten(items: list[Item], seen: list[object]) -> None:
    for item in items:
        if not isinstance(item, Run):
            seen.append(item)
            continue
        sizes = [len(payload) for payload in item.payloads]
        assert 1 <= len(sizes) <= capsule.RUN_DATAGRAMS and sum(sizes) == item.total_bytes <= capsule.RUN_BYTES
        assert all(size == item.segment_bytes for size in sizes[:-1]) and sizes[-1] <= item.segment_bytes
        seen.extend(payload.tobytes() for payload in item.payloads)


def check(data: bytes, rng: random.Random, buffer: bytearray) -> None:
    """Raises when the input breaks the first line of this file."""
    extensions = rng.random() < 0.8
    whole = outcome(data, buffer, [], 1 << 30, extensions)
    if rng.random() < 0.2 and len(data) < 300:
        cuts = list(range(1, len(data)))
    else:
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    pieces = outcome(data, buffer, cuts, rng.choice((1, 5, 1 << 30)), extensions)
    if whole[-1] is BadMessage:
        # In one piece, what came before the violation in the same buffer is dropped with the stream.
        assert pieces[-1] is BadMessage
    else:
        assert pieces == whole


def outcome_of(rng: random.Random, data: bytes) -> str:
    check(data, rng, BUFFER)
    return "refused as malformed" if outcome(data, BUFFER, [], 1 << 30, True)[-1] is BadMessage else "accepted"


if __name__ == "__main__":
    sys.exit(drive(__doc__, stream, outcome_of))
