"""The NetStack port over a FakeHost: what rtnetlink, /proc/sys and nft would say and do, without any of them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence

from agent.errors import HostError
from agent.fakes.host import FakeHost
from agent.host import (
    AddAddress,
    AddRoute,
    AddRule,
    DelAddress,
    DelRoute,
    DelRule,
    NetStep,
    SetFirewall,
    SetLink,
    SetSysctl,
)
from agent.model import IFALIAS_PREFIX, LinkState, NetState
from agent.sysctl import path_of

#: Per step, the errno that says that the host already is what the step wanted.
_ALREADY = {
    AddAddress: {errno.EEXIST},
    AddRule: {errno.EEXIST},
    DelAddress: {errno.EADDRNOTAVAIL, errno.ENODEV},
    DelRule: {errno.ENOENT},
    DelRoute: {errno.ESRCH},
}


class FakeNetStack:
    """One process's view of `host`. A second one on the same host is what a restarted daemon would have."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self._applied: str | None = None  # the one firewall text this process knows to be its own

    async def read(
        self, ifnames: Sequence[str] | None, sysctls: Sequence[str] = (), firewall: str | None = None
    ) -> NetState:
        host = self.host
        if ifnames is None:
            ifnames = [name for name, link in host.links.items() if link.alias.startswith(IFALIAS_PREFIX)]
        links = tuple(
            (name, LinkState(link.mtu_bytes, link.up, link.alias, frozenset(link.addresses)))
            for name in sorted(set(ifnames))
            if (link := host.links.get(name)) is not None
        )
        text = host.firewall
        return NetState(
            links=links,
            routes=frozenset(host.routes.values()),
            rules=frozenset(host.rules),
            firewall=text if text is None or text in (self._applied, firewall) else "",
            sysctls=frozenset((key, host.sysctls[key]) for key in sysctls if key in host.sysctls),
        )

    async def apply(self, steps: Sequence[NetStep]) -> None:
        for step in steps:
            try:
                self._apply(step)
            except HostError as exc:
                if exc.errno not in _ALREADY.get(type(step), ()):
                    raise HostError(f"{step}: {exc}", exc.errno) from exc

    def _apply(self, step: NetStep) -> None:
        host = self.host
        match step:
            case AddAddress(ifname, address):
                host.add_address(ifname, address)
            case DelAddress(ifname, address):
                host.delete_address(ifname, address)
            case SetLink(ifname):
                self._set_link(step)
            case AddRule(family):
                host.add_rule(family)
            case DelRule(family):
                host.delete_rule(family)
            case AddRoute(route):
                host.replace_route(route)
            case DelRoute(route):
                host.delete_route(route)
            case SetSysctl(key, value):
                path_of(key)  # refuses what the real one refuses
                host.set_sysctl(key, value)
            case SetFirewall(text):
                host.set_firewall(text)
                self._applied = text

    def _set_link(self, step: SetLink) -> None:
        link = self.host.link(step.ifname)
        if step.alias is not None:
            link.alias = step.alias
            self.host.touch()
        if step.mtu_bytes is not None:
            self.host.set_mtu(step.ifname, step.mtu_bytes)
        if step.up is not None:
            self.host.set_up(step.ifname, step.up)

    def firewall_counters(self) -> dict[str, int]:
        return dict(self.host.counters)

    async def changes(self) -> AsyncIterator[None]:
        changed = asyncio.Event()
        self.host.listeners.append(changed.set)
        try:
            while True:
                await changed.wait()
                changed.clear()
                yield
        finally:
            self.host.listeners.remove(changed.set)
