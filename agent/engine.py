"""The reconcile loop: desired -> observe -> plan -> apply, level-triggered.

Events carry no decisions. A netlink change, a new grant or the resync timer sets one flag, and the loop looks at the world
again. A crash half-way needs no recovery: the next pass plans what is left. An idle pass changes and logs nothing.

To read thousands of peers takes longer than everything else together, and on a seed server some of them change all the time.
So a pass that succeeded is remembered for such a device: what was desired is what WireGuard has. That ends with any trouble, with any
change that netlink tells of, and with the next resync; links, routes and firewall are looked at in each pass.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Never, get_args

from agent.backoff import Backoff
from agent.errors import ConfigError, HostError, RhizomeError
from agent.host import CreateDevice, DeleteDevice, NetStack, NetStep, Step, WireGuard, WireGuardStep
from agent.model import IFALIAS_PREFIX, Device, DeviceState, LinkState, Observed, Tunnel
from agent.plan import plan
from agent.run import spawn

log = logging.getLogger("rhizome.engine")

LONG_PASS_S = 0.1
PAUSE_MAX_S = 0.5
#: A device with so many peers is not read in each pass.
MANY_PEERS = 256

_WIREGUARD_STEPS = get_args(WireGuardStep)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass saw and did. `error` is why it stopped early, None when the host now is what was desired."""

    observed: Observed
    steps: tuple[Step, ...]
    error: RhizomeError | None = None

    @property
    def created(self) -> frozenset[str]:
        """Names of devices that are new since the last pass: they have no sessions, so their epoch must change."""
        return frozenset(step.ifname for step in self.steps if isinstance(step, CreateDevice))


async def observe(
    wg: WireGuard,
    net: NetStack,
    ifnames: Sequence[str] | None,
    want: Tunnel | None = None,
    remembered: Mapping[str, DeviceState] = MappingProxyType({}),
) -> Observed:
    """One look at the host. `ifnames=None`: all devices of ours. `want` says which sysctls to read, and which firewall text
    to recognise; of `remembered` devices it is only looked whether they are there. Raises ConfigError if a name belongs to a
    foreign device."""
    want = want or Tunnel()
    state = await net.read(ifnames, sorted(key for key, _ in want.sysctls), want.firewall)
    devices: list[Device] = []
    statuses = []
    for ifname, link in state.links:
        device = remembered.get(ifname) or await wg.read(ifname)
        if device is None:
            if await _vanished(net, ifname):
                continue
            raise ConfigError(f"interface {ifname} exists and is not WireGuard: choose another --ifname or remove it")
        if not _ours(link, device):
            raise ConfigError(
                f"interface {ifname} is a WireGuard device that Rhizome did not make: choose another --ifname or remove it"
            )
        devices.append(
            Device(
                ifname=ifname,
                private_key=device.private_key,
                listen_port=device.listen_port,
                fwmark=device.fwmark,
                mtu_bytes=link.mtu_bytes,
                up=link.up,
                alias=link.alias,
                addresses=link.addresses,
                peers=device.peers,
            )
        )
        statuses.append((ifname, device.statuses))
    tunnel = Tunnel(tuple(devices), state.routes, state.firewall, state.sysctls)
    return Observed(tunnel, tuple(statuses), state.rules)


def _ours(link: LinkState, device: DeviceState) -> bool:
    """A device without alias and without peers is one that we were interrupted in making."""
    return link.alias.startswith(IFALIAS_PREFIX.strip()) or (not link.alias and not device.peers)


async def _vanished(net: NetStack, ifname: str) -> bool:
    """The device went away between the two looks (wireguard-go died)."""
    return (await net.read((ifname,))).link(ifname) is None


async def apply(steps: Sequence[Step], wg: WireGuard, net: NetStack) -> None:
    """Apply in order, neighbours for the same port in one batch. Raises HostError at the first step that fails."""
    for (kind, _), group in itertools.groupby(steps, key=_port):
        batch = list(group)
        if kind == "create":
            for step in batch:
                assert isinstance(step, CreateDevice)
                await wg.create(step)
        elif kind == "delete":
            for step in batch:
                assert isinstance(step, DeleteDevice)
                await wg.delete(step.ifname)
        elif kind == "wireguard":
            await wg.apply([step for step in batch if isinstance(step, WireGuardStep)])
        else:
            await net.apply([step for step in batch if isinstance(step, NetStep)])


def _port(step: Step) -> tuple[str, str]:
    if isinstance(step, CreateDevice):
        return "create", step.ifname
    if isinstance(step, DeleteDevice):
        return "delete", step.ifname
    if isinstance(step, WireGuardStep):
        return "wireguard", step.ifname
    return "net", ""


class Engine:
    """Drives one network namespace to `desired()`.

    `desired` is called once a pass and must be cheap. `on_pass` is told of every pass that did something or failed, and
    of every observation. `run()` returns only by cancellation, and leaves everything as it is: the data plane fails static.
    """

    def __init__(
        self,
        wg: WireGuard,
        net: NetStack,
        desired: Callable[[], Tunnel],
        on_pass: Callable[[Pass], None],
        *,
        resync_s: float = 30.0,
    ) -> None:
        self._wg = wg
        self._net = net
        self._desired = desired
        self._on_pass = on_pass
        self._resync_s = resync_s
        self._wake = asyncio.Event()
        self._settled = asyncio.Condition()
        self._begun = 0  # passes begun
        self._reached = 0  # number of the last pass that reached the desired state
        self._remembered: dict[str, DeviceState] = {}
        self._remembered_until = 0.0

    def wake(self) -> None:
        """Look again soon. Cheap; many calls make one pass."""
        self._wake.set()

    async def settled(self) -> None:
        """Wait until a pass that began after this call has reached the desired state."""
        target = self._begun + 1
        self.wake()
        async with self._settled:
            await self._settled.wait_for(lambda: self._reached >= target)

    async def run(self) -> Never:
        watcher = spawn(self._watch(), name="engine.watch")
        backoff = Backoff(first_s=0.05, cap_s=5.0)
        try:
            while True:
                self._wake.clear()  # before observing: a change during the pass makes another pass
                self._begun += 1
                began = time.monotonic()
                done = await self.once()
                took_s = time.monotonic() - began
                if done.error is not None:
                    delay = backoff.next()
                    log.warning(
                        "pass failed, again in %.1f s: %s",
                        delay,
                        done.error,
                        extra={"event": "pass.failed", "errno": _errno(done.error)},
                    )
                else:
                    backoff.reset()
                    delay = self._resync_s
                    async with self._settled:
                        self._reached = self._begun
                        self._settled.notify_all()
                await asyncio.sleep(self._pause_s(took_s))
                try:
                    await asyncio.wait_for(self._wake.wait(), delay)
                except TimeoutError:
                    continue
                if done.error is not None:
                    await asyncio.sleep(
                        min(delay, 0.05)
                    )  # our own half-done changes wake us: do not spin on a failing step
        finally:
            watcher.cancel()

    def _pause_s(self, took_s: float) -> float:
        """With thousands of peers, what comes in a while is done together: all else that this process does needs its time, too.
        A pass that had nothing to read did nothing but think."""
        if self._remembered:
            return min(PAUSE_MAX_S, 2 * took_s)
        return took_s / 2 if took_s > LONG_PASS_S else 0.0

    async def once(self) -> Pass:
        """One pass. Never raises RhizomeError: it stands in the result. A ConfigError there means that we give up on nothing,
        but only a change of configuration or of the host will help."""
        observed, steps = Observed(Tunnel()), tuple[Step, ...]()
        try:
            want, remembered = self._desired(), self._remember()
            observed = await observe(self._wg, self._net, [d.ifname for d in want.devices], want, remembered)
            steps = plan(want, observed)
            for step in steps:
                log.debug("%s", step, extra={"event": "step"})
            await apply(steps, self._wg, self._net)
            self._remembered = {d.ifname: _state(d) for d in want.devices if len(d.peers) >= MANY_PEERS}
            done = Pass(observed, steps)
            if steps:
                log.info("applied %d steps", len(steps), extra={"event": "plan.applied", "steps": len(steps)})
        except RhizomeError as exc:
            done = Pass(observed, steps, exc)
        self._on_pass(done)
        return done

    def _remember(self) -> Mapping[str, DeviceState]:
        """What is remembered, for one pass: if that fails, nothing is. When it is time to look again, what is wanted now is
        done from memory first, and looked at directly afterwards."""
        remembered, self._remembered = self._remembered, {}
        now = time.monotonic()
        if remembered and now < self._remembered_until:
            return remembered
        if remembered and self._remembered_until:
            self._remembered_until = 0.0
            self.wake()
            return remembered
        self._remembered_until = now + self._resync_s
        return {}

    async def _watch(self) -> None:
        async for _ in self._net.changes():
            self._remembered_until = 0.0
            self.wake()


def _state(device: Device) -> DeviceState:
    """What WireGuard has when it has what is desired. A port that is not managed is not compared either."""
    return DeviceState(device.private_key, device.listen_port or 0, device.fwmark, device.peers)


def _errno(error: RhizomeError) -> str | None:
    return errno.errorcode.get(error.errno) if isinstance(error, HostError) else None
