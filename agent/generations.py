"""The two names that a stream's device has in turn: its key is replaced by making the other one (docs/adr/0018-wireguard-keys.md).

Which of two devices is the newer one says the time in its epoch (agent.dataplane). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.carrier.api import SYMBOLIC_TARGET
from agent.model import IFNAME_MAX, PublicKey

SUFFIX = "-b"
#: From one's UDP port to the other's; the one between them is the direct device's by default.
PORT_STEP = 2


@dataclass(frozen=True, slots=True)
class Names:
    """Of the two devices and of their UDP ports, as they follow from the settings of the first."""

    ifname: str
    port: int

    @property
    def second(self) -> str:
        return self.ifname[: IFNAME_MAX - len(SUFFIX)] + SUFFIX

    @property
    def both(self) -> tuple[str, str]:
        return self.ifname, self.second

    def other(self, ifname: str) -> str:
        return self.second if ifname == self.ifname else self.ifname

    def port_of(self, ifname: str) -> int:
        if ifname == self.ifname:
            return self.port
        return self.port + PORT_STEP if self.port + PORT_STEP < 65536 else self.port - PORT_STEP


def target(key: PublicKey) -> str:
    """What a stream to the device with this key asks for."""
    return f"{SYMBOLIC_TARGET}-{key.raw[:4].hex()}"
