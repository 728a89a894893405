"""Any reply of a wireguard-go -> a device or UapiError, never another exception, never a hang, never a key in an error.

What parses is also sent: the requests that would make the same device must parse back to it.

python -m tests.fuzz.fuzz_uapi --seconds 60 [--seed N]: prints how many inputs it tried; exits 1 with the input on a finding.
"""

from __future__ import annotations

import random
import sys

from agent.host import SetDevice, SetPeer, WireGuardStep
from agent.model import DeviceState
from agent.wireguard import uapi
from agent.wireguard.uapi import UapiError
from tests.fuzz.driver import drive

KEYS = [
    "private_key",
    "listen_port",
    "fwmark",
    "public_key",
    "preshared_key",
    "endpoint",
    "persistent_keepalive_interval",
    "last_handshake_time_sec",
    "last_handshake_time_nsec",
    "rx_bytes",
    "tx_bytes",
    "allowed_ip",
    "protocol_version",
    "errno",
    "surprise",
]
NUMBERS = ("0", "1", "25", "65535", "65536", "-1", "+1", "1_0", " 1", "0x52", "4294967296", "9" * 5000, "٣", "")
NETWORKS = ("10.1.0.0/16", "0.0.0.0/0", "::/0", "fd00:1::/64", "10.0.0.1/8", "10.0.0.0", "::1/129", "fe80::%lo/64", "/")
ENDPOINTS = (
    "192.0.2.1:5",
    "[2001:db8::1]:51820",
    "[fe80::5%lo]:1",
    "[::]:",
    "192.0.2.1",
    "[192.0.2.1]:1",
    "::1:1",
    ":",
)
SECRET = "5e" * 32


def value(rng: random.Random, key: str) -> str:
    if key.endswith("_key"):
        broken = rng.choice(
            (rng.randbytes(rng.randrange(40)).hex(), "zz" * 32, SECRET + "00", SECRET.upper(), SECRET + " ")
        )
        return rng.choice((SECRET, rng.randbytes(32).hex())) if rng.random() < 0.95 else broken
    if key in ("endpoint", "allowed_ip"):
        choices = ENDPOINTS if key == "endpoint" else NETWORKS
        return rng.choice(choices[:3] if rng.random() < 0.9 else choices)
    return str(rng.randrange(65536)) if rng.random() < 0.97 else rng.choice(NUMBERS)


def reply(rng: random.Random) -> bytes:
    """Mostly well formed; in half of the cases bent."""
    likely = rng.random() < 0.6
    lines = [f"{key}={value(rng, key)}" for key in KEYS[:3] if rng.random() < 0.7]
    for _ in range(rng.randrange(4)):
        lines.append(f"public_key={rng.randbytes(32).hex() if likely else value(rng, 'public_key')}")
        lines += [f"{key}={value(rng, key)}" for key in rng.choices(KEYS[4:-3] if likely else KEYS, k=rng.randrange(8))]
    lines.append(rng.choice(("errno=0", "errno=0", "errno=0", "errno=-22", "errno=", "errno=x", "")))
    data = bytearray("\n".join(lines).encode() + rng.choice((b"\n\n", b"\n\n", b"\n\n", b"\n", b"")))
    if rng.random() < 0.3:
        for _ in range(rng.randrange(1, 4)):
            where = rng.randrange(len(data) + 1)
            match rng.randrange(3):
                case 0:
                    data[where:where] = rng.choice((b"\n", b"=", b"\0", b"\xff", b"errno=0\n\n", rng.randbytes(4)))
                case 1:
                    del data[where : where + rng.randrange(1, 30)]
                case _:
                    data[where : where + 1] = rng.randbytes(1)
    return bytes(data)


def steps(state: DeviceState) -> list[WireGuardStep]:
    return [
        SetDevice("wg0", state.private_key, state.listen_port, state.fwmark),
        *(
            SetPeer("wg0", p.public_key, p.allowed_ips, p.endpoint, p.preshared_key, p.persistent_keepalive_s)
            for p in state.peers
        ),
    ]


def check(data: bytes) -> bool:
    """Whether it is a device. Raises when the input breaks the first lines of this file."""
    try:
        state = uapi.parse(data)
    except UapiError as exc:
        said = f"{exc!r} {exc.__cause__!r}"
    else:
        return parses_back(state)
    assert SECRET[:16] not in said, "a key in an error"
    return False


def parses_back(state: DeviceState) -> bool:
    assert SECRET not in repr(state)
    requests = list(uapi.set_requests(steps(state), throwaway_key=lambda: bytes(32), removes_single=True))
    # A request differs from a reply in its frame and says nothing of counters.
    lines = "".join(request.decode().removeprefix("set=1\n").removesuffix("\n") for request in requests)
    again = uapi.parse(lines.encode() + b"errno=0\n\n")
    assert (again.private_key, again.listen_port, again.fwmark) == (state.private_key, state.listen_port, state.fwmark)
    assert again.peers == state.peers
    return True


if __name__ == "__main__":
    sys.exit(drive(__doc__, reply, lambda _, data: "devices" if check(data) else "refused"))
