"""The server's second device, for sidecars that reach it by UDP and not by a stream.

Its key is not made at random but derived (RFC 5869) from a secret that outlives this server's pod: from the file that the
setting names, otherwise from the private key of its TLS certificate. So do the preshared keys, one per sidecar and key. A
sidecar that nobody looks after any more finds the same server again after a restart.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from agent.canary import Prober
from agent.dataplane import DataPlane
from agent.engine import Pass
from agent.errors import ConfigError, HostError
from agent.keys import derive, private_key_bytes
from agent.messages import Direct
from agent.model import Device, Endpoint, IPAddress, PeerStatus, PresharedKey, PrivateKey, PublicKey
from agent.pulse import Pulse
from seed_server.registry import Client

log = logging.getLogger("rhizome.seed.direct")

SECRET_MIN_BYTES = 32
#: A canary is as long as a packet may be, less the headers of IPv6 and UDP: what works for it works for all.
HEADERS_BYTES = 48


class Secrets:
    """What is derived from the one secret. Shows nothing of it."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def load(cls, file: Path | None, tls_key: Path) -> Secrets:
        """Raises ConfigError when there is nothing to derive from."""
        if file is None:
            return cls(private_key_bytes(tls_key))
        try:
            secret = file.read_bytes().strip()
        except OSError as exc:
            raise ConfigError(f"direct_secret: {file}: {exc.strerror}") from exc
        if len(secret) < SECRET_MIN_BYTES:
            raise ConfigError(
                f"direct_secret: {file}: has fewer than {SECRET_MIN_BYTES} bytes: make it with `wg genkey`"
            )
        return cls(secret)

    def device_key(self) -> PrivateKey:
        return PrivateKey(derive(self._secret, "direct device"))

    def preshared_key(self, identity: str, public_key: PublicKey) -> PresharedKey:
        return PresharedKey(derive(self._secret, "direct preshared key", identity, str(public_key)))

    def __repr__(self) -> str:
        return "Secrets(hidden)"


class DirectSide:
    """The device, its canaries and what sidecars are told of it. `addresses` are the server's own there."""

    def __init__(
        self,
        plane: DataPlane,
        secrets: Secrets,
        *,
        port: int,
        mtu_bytes: int,
        addresses: tuple[IPAddress, ...],
        endpoints: tuple[Endpoint, ...],
    ) -> None:
        self.plane = plane
        self.addresses = addresses
        self.prober = Prober(time.monotonic, mtu_bytes - HEADERS_BYTES)
        self.statuses: tuple[PeerStatus, ...] = ()
        self._secrets = secrets
        self.port = port
        self._mtu_bytes = mtu_bytes
        self._endpoints = endpoints

    def device(self) -> Device:
        """The desired device without addresses and peers."""
        return self.plane.device(listen_port=self.port, mtu_bytes=self._mtu_bytes)

    def preshared_key(self, client: Client) -> PresharedKey:
        assert client.direct_key is not None
        return self._secrets.preshared_key(str(client.identity), client.direct_key)

    def offer(self, client: Client) -> Direct | None:
        """What this client is told, None when it has no device for it."""
        if client.direct_key is None:
            return None
        incarnation = self.plane.incarnation
        return Direct(
            incarnation.public_key, incarnation.epoch, self.addresses, self._endpoints, self.preshared_key(client)
        )

    def on_pass(self, done: Pass) -> bool:
        """The engine has looked. True when the device is a new one, which everybody has to hear of."""
        if done.error is None and (self.plane.ifname in done.created or not self.prober.is_open):
            self.prober.open(self.plane.ifname, self.addresses[0])
        return self.plane.is_new_incarnation(done)

    def watch(self, client: Client, now: float) -> None:
        if client.once is not None and client.stream is None:  # nobody is there any more who would answer
            for address in client.addresses[:1]:
                self.prober.forget(str(address))
            return
        for address in client.addresses[:1] if client.direct_key is not None else ():
            target = self.prober.targets.get(str(address))
            self.prober.watch(str(address), target.pulse if target is not None else Pulse(now))

    def judge(self, now: float) -> None:
        """Who does not answer is asked less often."""
        for target in self.prober.targets.values():
            target.pulse.judge(now)

    def handshakes(self) -> dict[PublicKey, float]:
        """When WireGuard last made one, by public key, as `look` saw it."""
        return {s.public_key: s.latest_handshake for s in self.statuses if s.latest_handshake is not None}

    async def look(self) -> None:
        """Read WireGuard's counters."""
        try:
            device = await self.plane.read()
        except HostError as exc:
            log.debug("cannot read the device: %s", exc, extra={"event": "device.unreadable"})
            return
        self.statuses = device.statuses if device is not None else ()
