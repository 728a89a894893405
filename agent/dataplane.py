"""The data plane of one role: its WireGuard device's key and epoch, and the engine that keeps the host as desired.

A key is born here in memory and lives in the device. A daemon that starts and finds its device adopts key, epoch and peers:
the sessions go on. A device that had to be made anew has no sessions, so it gets a new epoch, whatever its key.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.engine import Engine, Pass, observe
from agent.errors import ConfigError
from agent.generations import Names
from agent.host import NetStack, WireGuard
from agent.keys import generate_private_key, public_key
from agent.model import FWMARK, IFALIAS_PREFIX, Device, DeviceState, PrivateKey, PublicKey, Route, Tunnel

log = logging.getLogger("rhizome.dataplane")

_EPOCH = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Incarnation:
    """What makes a device this device. `epoch` is new whenever the device is: 8 hex digits that say when its key was made, as time
    of day in seconds, and 8 random ones."""

    private_key: PrivateKey
    public_key: PublicKey
    epoch: str

    @classmethod
    def new(cls, private_key: PrivateKey | None = None) -> Incarnation:
        key = private_key or generate_private_key()
        return cls(key, public_key(key), _new_epoch())


def _new_epoch(born: float | None = None) -> str:
    return f"{int(time.time() if born is None else born) & 0xFFFFFFFF:08x}{secrets.token_hex(4)}"


class DataPlane:
    """One device `ifname` of `role`. `adopted` is the device as it was found at start, None when there was none;
    `adopted_routes` are those that led through it."""

    def __init__(
        self, wg: WireGuard, net: NetStack, ifname: str, role: str, incarnation: Incarnation, adopted: Device | None
    ) -> None:
        self.wg = wg
        self.net = net
        self.ifname = ifname
        self.role = role
        self.incarnation = incarnation
        self.adopted = adopted
        self.adopted_routes: frozenset[Route] = frozenset()
        self._known = adopted is not None
        self._found = time.time()

    @classmethod
    async def open(
        cls, wg: WireGuard, net: NetStack, ifname: str, role: str, private_key: PrivateKey | None = None
    ) -> DataPlane:
        """Look for our device and adopt it. Without one, it will be made with `private_key`, None for a new key.

        Raises ConfigError when the name belongs to another program's or role's device.
        """
        observed = await observe(wg, net, (ifname,))
        device = next((d for d in observed.tunnel.devices if d.ifname == ifname), None)
        if device is None or device.private_key is None:
            return cls(wg, net, ifname, role, Incarnation.new(private_key), None)
        words = device.alias.removeprefix(IFALIAS_PREFIX).split()
        if len(words) != 2 or words[0] != role:
            if device.alias.strip() not in ("", IFALIAS_PREFIX.strip()):
                raise ConfigError(
                    f"interface {ifname} is of another role ({device.alias!r}): choose another --ifname, or `rhizome-agent cleanup`"
                )
            words = [role, _new_epoch()]
        log.info(
            "adopted device %s with %d peers",
            ifname,
            len(device.peers),
            extra={"event": "device.adopted", "ifname": ifname},
        )
        incarnation = Incarnation(device.private_key, public_key(device.private_key), words[1])
        plane = cls(wg, net, ifname, role, incarnation, device)
        plane.adopted_routes = frozenset(route for route in observed.tunnel.routes if route.ifname == ifname)
        return plane

    @property
    def born(self) -> float:
        """When the key was made, as time of day; when the device was found, where it does not say so."""
        epoch = self.incarnation.epoch
        return float(int(epoch[:8], 16)) if _EPOCH.fullmatch(epoch) else self._found

    def engine(self, desired: Callable[[], Tunnel], on_pass: Callable[[Pass], None], resync_s: float) -> Engine:
        return Engine(self.wg, self.net, desired, on_pass, resync_s=resync_s)

    def device(self, *, listen_port: int | None, mtu_bytes: int) -> Device:
        """The desired device without addresses and peers."""
        return Device(
            ifname=self.ifname,
            private_key=self.incarnation.private_key,
            listen_port=listen_port,
            fwmark=FWMARK,
            mtu_bytes=mtu_bytes,
            alias=f"{IFALIAS_PREFIX}{self.role} {self.incarnation.epoch}",
        )

    def is_new_incarnation(self, done: Pass) -> bool:
        """True when this pass had to make the device again, so that the sessions of the one before are gone."""
        if self.ifname not in done.created:
            return False
        again, self._known = self._known, True
        if again:
            self.incarnation = replace(self.incarnation, epoch=_new_epoch(self.born))
            log.warning(
                "device %s was gone and is made anew",
                self.ifname,
                extra={"event": "device.lost", "ifname": self.ifname},
            )
        return again

    async def read(self) -> DeviceState | None:
        """Peers' handshakes and counters as of now; None without a device."""
        return await self.wg.read(self.ifname)


async def open_both(first: DataPlane, names: Names) -> tuple[DataPlane, DataPlane | None]:
    """The devices that an earlier run has left, the older one first. Without any, `first` is to be made. Raises ConfigError
    when the second name belongs to somebody else."""
    second = await DataPlane.open(first.wg, first.net, names.second, first.role)
    if second.adopted is None:
        return first, None
    if first.adopted is None:
        return second, None
    old, new = sorted((first, second), key=lambda plane: plane.born)
    return old, new
