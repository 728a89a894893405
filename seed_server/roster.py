"""Who is in, and how each of them does: the registry, with the canaries and the carrying that follow from it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.canary import Prober
from agent.dataplane import DataPlane
from agent.firewall import ALL_REACHABLE, Unreachable
from agent.identity import Identity, Role
from agent.model import IPAddress, Peer, PresharedKey, PublicKey
from agent.pulse import Pulse
from seed_server.absent import restore
from seed_server.carrying import Carrying
from seed_server.charter import Charter
from seed_server.direct import DirectSide
from seed_server.reachable import carriers
from seed_server.refusals import Refusals
from seed_server.registry import Client, Registry

REFUSALS_EVERY_S = 0.5
ADOPTED_KEPT_S = 60.0  # after a restart, clients have this long to enrol again before their peers are removed


class Roster:
    """Mutable; `registry` is replaced by `commit` alone. `known` is which sidecar has which tunnel address, as the IPAM
    says at start; `left` are sidecars without a daemon."""

    def __init__(
        self,
        charter: Charter,
        plane: DataPlane,
        known: Mapping[IPAddress, Identity],
        direct: DirectSide | None,
        left: Iterable[Client] = (),
    ) -> None:
        self.prober = Prober(time.monotonic)
        self.registry = Registry(known=known)
        self.carrying = Carrying(charter.policy.ranges())
        self._direct = direct
        self.unreachable: Unreachable = ALL_REACHABLE  # what sidecars are refused
        self._guests: dict[str, Pulse] = {}  # of sidecars, by tunnel address
        now = time.monotonic()
        self._refusals, self._refusals_due = Refusals(charter.ranges, now), now
        until = now + ADOPTED_KEPT_S
        if plane.adopted is not None:
            self.registry = replace(self.registry, adopted=tuple(plane.adopted.peers), adopted_until=until)
        if direct is not None and direct.plane.adopted is not None:
            self.registry = replace(
                self.registry,
                adopted_direct=tuple(direct.plane.adopted.peers),
                adopted_until=until,
                direct_routes=frozenset(route.dst for route in direct.plane.adopted_routes if not route.metric),
            )
        self.registry = restore(self.registry, charter.policy, left, now)
        self._expected: dict[PublicKey, Peer] = {peer.public_key: peer for peer in self.registry.adopted}
        for key, peer in self._expected.items():
            self.carrying.reserve(str(key), peer.allowed_ips)

    def adopted_psk(self, key: PublicKey | None) -> PresharedKey | None:
        """A client that was in before this server restarted keeps its preshared key: both ends must agree all the time."""
        peer = self._expected.get(key) if key is not None else None
        return peer.preshared_key if peer is not None else None

    def commit(self, registry: Registry, changed: Iterable[str]) -> None:
        """Take `registry` as the truth, with what follows for these clients."""
        before, self.registry = self.registry, registry
        now = time.monotonic()
        for key in changed:
            self._follow(before, key, now)
        if before.adopted and not registry.adopted:
            for public_key in self._expected:
                self.carrying.release(str(public_key))
            self._expected.clear()

    def _follow(self, before: Registry, key: str, now: float) -> None:
        client, known = self.registry.clients.get(key), before.clients.get(key)
        for address in known.addresses[:1] if known is not None else ():
            if client is None or client.addresses[:1] != (address,):
                self.prober.forget(str(address))
                self._guests.pop(str(address), None)
                if self._direct is not None:
                    self._direct.prober.forget(str(address))
        if client is None:
            self.carrying.drop(key)
            return
        if client.identity.role is Role.SIDECAR:  # nobody stands by for it
            for address in client.addresses[:1] if client.once is None else ():
                self.prober.watch(str(address), self._guests.setdefault(str(address), Pulse(now)))
            if self._direct is not None:
                self._direct.watch(client, now)
            return
        expected = client.public_key in self._expected
        pulse = self.carrying.put(client, now, trusted=expected)
        if expected:
            self.carrying.release(str(client.public_key))
        for address in client.addresses[:1]:
            self.prober.watch(str(address), pulse)

    def judge(self, now: float) -> list[tuple[Identity, Pulse]]:
        """Who can be relied on; parts of those who cannot be move. Those whose standing has changed.

        Nobody relies on a sidecar, but a silent one is asked less often.
        """
        for pulse in self._guests.values():
            pulse.judge(now)
        if self._direct is not None:
            self._direct.judge(now)
        changed = self.carrying.judge_all(now)
        return [(self.registry.clients[key].identity, self.carrying.pulses[key]) for key in changed]

    def refuse(self, now: float) -> bool:
        """Look what of the shoot cannot be reached, if there are sidecars; True when `unreachable` has changed."""
        if now < self._refusals_due:
            return False
        self._refusals_due = now + REFUSALS_EVERY_S
        before = self.unreachable
        if not any(client.identity.role is Role.SIDECAR for client in self.registry.clients.values()):
            return False
        found = carriers(self.registry, self.carrying.carries, self.carrying.pulses)
        self.unreachable = self._refusals.look(found.values(), now)
        return self.unreachable != before

    def close(self) -> None:
        """No more canaries."""
        self.prober.close()
        if self._direct is not None:
            self._direct.prober.close()
