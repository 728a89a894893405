"""The daemon and its egress process: tells it what can be reached, hears its numbers, keeps it alive."""

from __future__ import annotations

import asyncio
import grp
import logging
import pwd
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.carrier.api import TlsFiles
from agent.daemon import EGRESS_SUFFIX
from agent.errors import ConfigError
from agent.generations import Names
from agent.run import spawn
from agent.status import EgressHealth
from seed_server.charter import Charter
from seed_server.egress.api import Carries, EgressConfig, GetStats, Known, Leaves, Ready, Stats, UnixListen
from seed_server.egress.client import EgressClient, retire_egress
from seed_server.reachable import Carrier, carriers
from seed_server.server import SeedServer
from seed_server.settings import Settings

log = logging.getLogger("rhizome.seed.egress")

#: How often what can be reached is compared with what was said; every STATS_EVERY-th time the numbers are asked for.
TICK_S = 0.25
STATS_EVERY = 4


@asynccontextmanager
async def egress(settings: Settings, charter: Charter, server: SeedServer) -> AsyncIterator[EgressLink | None]:
    """The egress process, started or adopted; it goes on when this context ends. None when it is not configured: then one
    that is left from another configuration finishes its connections and ends. Raises ConfigError, HostError."""
    path = settings.runtime_dir / f"{settings.ifname}{EGRESS_SUFFIX}"
    config = config_of(settings, charter)
    if config is None:
        await retire_egress(path)
        yield None
        return
    client = await EgressClient(path, config).attach()
    link = EgressLink(client, server, config)
    try:
        yield link
    finally:
        await client.detach()


def config_of(settings: Settings, charter: Charter) -> EgressConfig | None:
    """None when no address and no socket is configured. Raises ConfigError for an owner that does not exist."""
    if not settings.egress_listen and settings.egress_socket is None:
        return None
    tls = None
    if settings.egress_listen:
        tls = TlsFiles(
            ca=str(settings.egress_client_ca),
            certificate=str(settings.egress_tls_certificate or settings.tls_certificate),
            key=str(settings.egress_tls_key or settings.tls_key),
        )
    unix = None
    if settings.egress_socket is not None:
        uid, gid = _owner(settings.egress_socket_owner)
        unix = UnixListen(str(settings.egress_socket), uid, gid, settings.egress_socket_mode)
    return EgressConfig(
        addresses=tuple((str(a.host), a.port) for a in settings.egress_listen),
        tls=tls,
        unix=unix,
        shoot=tuple(map(str, charter.ranges)),
        refused=tuple((str(network), words) for network, words in charter.policy.protected),
        direct=settings.egress_direct,
        devices=Names(settings.ifname, settings.wireguard_port).both,
        dns=tuple(map(str, settings.egress_dns)),
        dial_timeout_s=settings.egress_dial_timeout_s,
        max_connections=settings.egress_max_connections,
        max_heads=settings.egress_max_heads,
    )


def _owner(text: str | None) -> tuple[int | None, int | None]:
    """Raises ConfigError."""
    if text is None:
        return None, None
    user, colon, group = text.partition(":")
    try:
        uid = int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        gid = (int(group) if group.isdigit() else grp.getgrnam(group).gr_gid) if colon else None
    except KeyError as exc:
        raise ConfigError(f"egress_socket_owner: {text}: there is no such user or group: give numbers") from exc
    return uid, gid


class EgressLink:
    """One per daemon. `run` lives as long as the daemon."""

    def __init__(self, client: EgressClient, server: SeedServer, config: EgressConfig) -> None:
        self._client = client
        self._server = server
        self._config = config
        self._said: dict[str, Carrier] | None = None  # None: the process knows nothing yet
        self._nobody_since = time.monotonic()
        self._stats: Stats | None = None
        self._ready: Ready | None = None

    def start(self) -> None:
        spawn(self._listen(), name="seed.egress.events", vital=True)
        spawn(self._beat(), name="seed.egress.beat", vital=True)

    def health(self) -> EgressHealth:
        stats, config = self._stats, self._config
        listening = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self._addresses()]
        listening += [config.unix.path] if config.unix else []
        if stats is None:
            return EgressHealth(tuple(listening))
        return EgressHealth(
            listening=tuple(listening),
            open=stats.open,
            heads=stats.heads,
            dials=tuple((f"{stage} {result}", count) for stage, result, count in stats.dials),
            latency=tuple(("inf" if bound < 0 else f"{bound:g}", count) for bound, count in stats.latency),
            latency_sum_s=stats.latency_sum_s,
            up_bytes=stats.up_bytes,
            down_bytes=stats.down_bytes,
            last_failure=stats.last_failure,
        )

    def _addresses(self) -> tuple[tuple[str, int], ...]:
        return self._ready.addresses if self._ready is not None else self._config.addresses

    async def _listen(self) -> None:
        async for event in self._client.events():
            if isinstance(event, Ready):
                self._ready = event
                self._said = None
                self.tell(time.monotonic())
            elif isinstance(event, Stats):
                self._stats = event

    async def _beat(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(TICK_S)
            self.tell(time.monotonic())
            count += 1
            if count % STATS_EVERY == 0:
                self._client.send(GetStats())

    def tell(self, now: float) -> None:
        """Say what has changed."""
        server = self._server
        wanted = carriers(server.registry, server.carries, server.roster.carrying.pulses)
        said = self._said
        before = said or {}
        changed = said is None
        for name in before.keys() - wanted.keys():
            self._client.send(Leaves(name))
            changed = True
        for name, carrier in wanted.items():
            if before.get(name) != carrier:
                age_s = now - carrier.since if carrier.fault else 0.0
                self._client.send(Carries(name, tuple(map(str, carrier.prefixes)), carrier.fault, age_s))
                changed = True
        if wanted:
            self._nobody_since = now
        if changed:
            self._client.send(Known() if wanted else Known("no client", now - self._nobody_since))
        self._said = wanted
