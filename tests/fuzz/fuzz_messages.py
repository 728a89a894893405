"""Any text of a control message -> a message or BadMessage, never another exception, never a hang, never a key in an error.

What parses is encoded again and must parse to the same.

python -m tests.fuzz.fuzz_messages --seconds 60 [--seed N]: prints how many inputs it tried; exits 1 with the input on a finding.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from agent.errors import BadMessage
from agent.messages import Message, Unknown, encode, parse
from tests.fuzz.driver import drive

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="
PREFIXES: list[Any] = [
    "10.1.0.0/16",
    "0.0.0.0/0",
    "fd00:1::/64",
    "10.0.0.1/8",
    "10.0.0.0",
    "fe80::%lo/64",
    "/",
    7,
    None,
]
ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 0.5, 1e308, 2**64, "", "x" * 5000, "\0\ud800\u202e", [], {}, [[[]]], {"": {}}, KEY, PREFIXES,
]  # fmt: skip


def grant(rng: random.Random) -> dict[str, Any]:
    return {
        "type": "grant",
        "version": 1,
        "epoch": "e1",
        "public_keys": {"stream": KEY},
        "addresses": ["192.168.128.8", "fd8f:6d53:b97a:1::8"],
        "servers": ["192.168.128.1"],
        "tunnel_networks": ["192.168.128.0/17"],
        "carries": rng.sample(PREFIXES[:3], rng.randrange(4)),
        "refused": [["10.0.0.0/8", "not declared"]],
        "mtu": rng.choice((1280, 1420, 9000)),
        "keepalive_s": rng.randrange(65536),
        "lifetime_s": rng.uniform(0, 3600),
        "direct": {"public_key": KEY, "epoch": "e", "servers": ["192.168.128.2"], "endpoints": [["192.0.2.1", 51821]]},
        "preshared_key": rng.choice((None, SECRET, SECRET + "x", SECRET[:-4])),
    }


def offer(rng: random.Random) -> dict[str, Any]:
    return {kind: rng.sample(PREFIXES[:3], rng.randrange(4)) for kind in ("nodes", "pods", "services")}


def message(rng: random.Random) -> dict[str, Any]:
    """Well formed."""
    return rng.choice(
        (
            lambda: {"type": "enroll", "versions": [1, 1], "software": "s", "public_keys": {"stream": KEY}, "offer": offer(rng)},
            lambda: grant(rng),
            lambda: {"type": "refuse", "reason": "r", "text": "t", "retry_after_s": rng.choice((None, 5.0))},
            lambda: {"type": "facts", "offer": offer(rng), "path": "stream", "health": "fine"},
            lambda: {"type": "drain", "reason": "r"},
            lambda: {"type": rng.choice(("newer", "", "x" * 100))},
        )
    )()  # fmt: skip


def bend(rng: random.Random, value: Any) -> Any:
    """One place of it is something else."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        match rng.randrange(5):
            case 0:
                return {key: item for key, item in value.items() if key != name}
            case 1:
                return {**value, rng.choice(("surprise", "type", "versions")): rng.choice(ODD)}
            case _:
                return {**value, name: bend(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], bend(rng, value[place]), *value[place + 1 :]]
    return rng.choice(ODD)


def text(rng: random.Random) -> str:
    value: Any = message(rng)
    for _ in range(rng.choice((0, 1, 1, 2))):
        value = bend(rng, value)
    written = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.2:
        place = rng.randrange(len(written) + 1)
        cut = place + rng.randrange(10)
        written = (
            written[:place] + rng.choice(("", "{", "]", '"', "NaN", "1e999", "\\ud800", "[" * 5000)) + written[cut:]
        )
    return written


def check(written: str) -> bool:
    """Whether it is a message that we know. Raises when the input breaks the first lines of this file."""
    try:
        read: Message = parse(written)
    except BadMessage as exc:
        said = f"{exc!r} {exc.__cause__!r}"
        assert SECRET[:12] not in said, "a key in an error"
        return False
    assert not isinstance(read, Unknown) or len(read.type) <= 64
    if isinstance(read, Unknown):
        return False
    assert parse(encode(read)) == read
    return True


if __name__ == "__main__":
    sys.exit(drive(__doc__, text, lambda _, written: "messages that we know" if check(written) else "others"))
