"""Who is in, and how each of them does: the registry, with the canaries and the carrying that follow from it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.firewall import ALL_REACHABLE, Unreachable
from agent.identity import Identity, Role
from agent.model import IPAddress, Peer, PresharedKey, PublicKey
from agent.pulse import Pulse
from seed_server.absent import restore
from seed_server.carrying import Carrying
from seed_server.charter import Charter
from seed_server.direct import DirectSide
from seed_server.generations import Generations
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
        stream: Generations,
        known: Mapping[IPAddress, Identity],
        direct: DirectSide | None,
        left: Iterable[Client] = (),
    ) -> None:
        self.registry = Registry(known=known)
        self.carrying = Carrying(charter.policy.ranges())
        self._stream = stream
        self._direct = direct
        self.unreachable: Unreachable = ALL_REACHABLE  # what sidecars are refused
        self._guests: dict[str, Pulse] = {}  # of sidecars, by tunnel address
        now = time.monotonic()
        self._refusals, self._refusals_due = Refusals(charter.ranges, now), now
        until = now + ADOPTED_KEPT_S
        found, next_ = stream.current.adopted, stream.successor.adopted if stream.successor is not None else None
        if found is not None:
            self.registry = replace(self.registry, adopted=tuple(found.peers), adopted_until=until)
        if stream.successor is not None and next_ is not None:
            self.registry = replace(
                self.registry,
                adopted_next=tuple(next_.peers),
                adopted_until=until,
                next_routes=frozenset(route.dst for route in stream.successor.adopted_routes if not route.metric),
            )
        if direct is not None and direct.plane.adopted is not None:
            self.registry = replace(
                self.registry,
                adopted_direct=tuple(direct.plane.adopted.peers),
                adopted_until=until,
                direct_routes=frozenset(route.dst for route in direct.plane.adopted_routes if not route.metric),
            )
        self.registry = restore(self.registry, charter.policy, left, now)
        both = self.registry.adopted + self.registry.adopted_next
        self._expected: dict[PublicKey, Peer] = {peer.public_key: peer for peer in both}
        for peer in self._expected.values():
            self.carrying.reserve(_holder(peer), peer.allowed_ips)

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
        if (before.adopted or before.adopted_next) and not (registry.adopted or registry.adopted_next):
            for peer in self._expected.values():
                self.carrying.release(_holder(peer))
            self._expected.clear()

    def _follow(self, before: Registry, key: str, now: float) -> None:
        client, known = self.registry.clients.get(key), before.clients.get(key)
        for address in known.addresses[:1] if known is not None else ():
            if client is None or client.addresses[:1] != (address,):
                self._stream.forget(address)
                self._guests.pop(str(address), None)
                if self._direct is not None:
                    self._direct.prober.forget(str(address))
        if client is None:
            self.carrying.drop(key)
            return
        if client.identity.role is Role.SIDECAR:  # nobody stands by for it
            for address in client.addresses[:1] if client.once is None else ():
                self._stream.watch(client, self._guests.setdefault(str(address), Pulse(now)), now)
            if self._direct is not None:
                self._direct.watch(client, now)
            return
        expected = any(key in self._expected for key in client.keys)
        pulse = self.carrying.put(client, now, trusted=expected)
        for public_key in client.keys if expected else ():
            if public_key in self._expected:
                self.carrying.release(_holder(self._expected[public_key]))
        self._stream.watch(client, pulse, now)

    def judge(self, now: float) -> list[tuple[Identity, Pulse]]:
        """Who can be relied on; parts of those who cannot be move. Those whose standing has changed.

        Nobody relies on a sidecar, but a silent one is asked less often.
        """
        for pulse in self._guests.values():
            pulse.judge(now)
        if self._direct is not None:
            self._direct.judge(now)
        changed = self.carrying.judge_all(now, stalled=self._stream.stalled)
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
        self._stream.close()
        if self._direct is not None:
            self._direct.prober.close()


def _holder(peer: Peer) -> str:
    """Whose a peer is that was found at start: the same for both that a client has while keys are replaced."""
    return " ".join(sorted(str(n) for n in peer.allowed_ips if n.prefixlen == n.max_prefixlen)) or str(peer.public_key)
