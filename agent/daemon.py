"""What every daemon does to begin and to go on: WireGuard backend, network stack, data plane, carrier, health endpoint.

The parts are joined here and nowhere else; a role brings its settings, its carrier configuration and its status.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from agent import logs
from agent.carrier.api import DialConfig, ListenConfig
from agent.carrier.client import CarrierClient
from agent.dataplane import DataPlane
from agent.identity import Role
from agent.model import IFALIAS_PREFIX
from agent.netlink import LinuxNetStack
from agent.observability import HealthServer
from agent.role_settings import RoleSettings
from agent.status import SOCKET_SUFFIX, RoleStatus
from agent.wireguard.choose import Choice, Mode, choose

log = logging.getLogger("rhizome.daemon")

CARRIER_SUFFIX = ".carrier"
EGRESS_SUFFIX = ".egress"


@dataclass(frozen=True, slots=True)
class Base:
    """What a role stands on."""

    plane: DataPlane
    net: LinuxNetStack
    choice: Choice


def software() -> str:
    return f"rhizome {version('rhizome')}"


def configure_logging(settings: RoleSettings, role: Role) -> None:
    logs.configure(
        settings.log_level.value,
        settings.log_format.value,
        static={"role": role.value, "control_plane": settings.control_plane},
    )


@asynccontextmanager
async def base(settings: RoleSettings, role: Role) -> AsyncIterator[Base]:
    """Raises Unsupported when this host cannot do it, ConfigError when the device's name is taken by somebody else."""
    async with LinuxNetStack() as net:
        choice = await choose(Mode(settings.wireguard.value), program=settings.wireguard_go)
        log.info("WireGuard: %s", choice.reason, extra={"event": "wireguard.chosen", "backend": choice.kind.value})
        yield Base(await DataPlane.open(choice.backend, net, settings.ifname, role.value), net, choice)


async def retire(on: Base, ifname: str) -> None:
    """Remove the device of an earlier configuration, if there is one of ours with this name: nobody looks after it any more."""
    link = (await on.net.read((ifname,))).link(ifname)
    if link is not None and link.alias.startswith(IFALIAS_PREFIX):
        log.info("removing %s, which is not configured any more", ifname, extra={"event": "device.retired"})
        await on.choice.backend.delete(ifname)


@asynccontextmanager
async def carrier(
    settings: RoleSettings, config: DialConfig | ListenConfig, ifname: str | None = None
) -> AsyncIterator[CarrierClient]:
    """The role's carrier process, started or adopted. It goes on when this context ends. `ifname`: the device that it is for,
    None for the one of the settings."""
    client = await CarrierClient.start(carrier_socket(settings.runtime_dir, ifname or settings.ifname), config)
    try:
        yield client
    finally:
        await client.detach()


def carrier_socket(runtime_dir: Path, ifname: str) -> Path:
    """Where the carrier process of the device `ifname` listens for its daemon."""
    return runtime_dir / f"{ifname}{CARRIER_SUFFIX}"


def health(settings: RoleSettings, state: Callable[[], RoleStatus]) -> HealthServer:
    return HealthServer(settings.health_listen, state, path=status_socket(settings.runtime_dir, settings.ifname))


def status_socket(runtime_dir: Path, ifname: str) -> Path:
    """Where `rhizome-agent status` finds the role that has the device `ifname`."""
    return runtime_dir / f"{ifname}{SOCKET_SUFFIX}"
