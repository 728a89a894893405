"""What it takes to have a second stream device beside the first: its name and port, a carrier process of its own, and an end of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from agent.carrier.api import SYMBOLIC_TARGET, DialConfig
from agent.carrier.client import CarrierClient, stop_carrier
from agent.client.role import BESIDE
from agent.daemon import carrier_socket
from agent.dataplane import DataPlane, open_both
from agent.errors import Unsupported
from agent.generations import Names
from agent.loose import obstacle
from agent.model import Route


@dataclass(frozen=True, slots=True)
class Kit:
    """`config` is the carrier's, with the port of the first device; `first` is that device's plane, as it was found."""

    first: DataPlane
    names: Names
    runtime_dir: Path
    config: DialConfig

    async def find(self) -> tuple[DataPlane, DataPlane | None]:
        """What an earlier run has left: the device that packets are sent by, and the other one. Raises ConfigError."""
        old, new = await open_both(self.first, self.names)
        if new is not None and _in_use(new.adopted_routes):
            return new, old
        return old, new

    def config_of(self, ifname: str, target: str = SYMBOLIC_TARGET) -> DialConfig:
        return replace(self.config, wireguard_port=self.names.port_of(ifname), target=target)

    async def make(self, ifname: str) -> DataPlane:
        """A device with a new key. Raises HostError, ConfigError, Unsupported."""
        if words := obstacle():
            raise Unsupported(words)
        await self.remove(ifname)
        return await DataPlane.open(self.first.wg, self.first.net, ifname, self.first.role)

    async def dial(self, config: DialConfig) -> CarrierClient:
        """The carrier of a device, started or adopted. Raises HostError."""
        ifname = next(name for name in self.names.both if self.names.port_of(name) == config.wireguard_port)
        return await CarrierClient.start(carrier_socket(self.runtime_dir, ifname), config)

    async def remove(self, ifname: str) -> None:
        """The device and its carrier, in this order: nothing is sent to a carrier that has ended. Raises HostError."""
        if await self.first.wg.read(ifname) is not None:
            await self.first.wg.delete(ifname)
        await stop_carrier(carrier_socket(self.runtime_dir, ifname))


def _in_use(routes: frozenset[Route]) -> bool:
    return any(route.metric < BESIDE for route in routes)
