"""rhizome-seed-server: read the settings, put the parts together, run."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agent.carrier.api import ListenConfig
from agent.cli.flags import load
from agent.daemon import base, carrier, configure_logging, health
from agent.dryrun import dry_run
from agent.errors import ConfigError
from agent.guard import guard_routes
from agent.identity import Identity, Role
from agent.model import IPAddress
from agent.protected import find_protected
from agent.run import run_command, run_daemon
from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores import Store
from ipam.stores.file import FileStore
from ipam.stores.memory import MemoryStore
from seed_server import desired
from seed_server.charter import Charter, charter
from seed_server.egress_link import egress
from seed_server.registry import Registry
from seed_server.reporter import Reporter
from seed_server.server import Allocate, SeedServer
from seed_server.settings import Settings

#: How long the address of a node that does not come back stays its own.
ADDRESS_KEPT_S = 30 * 86400.0


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. `plan` as the first word: print what would be changed on this host, and change nothing."""
    words = list(sys.argv[1:] if argv is None else argv)
    planning = words[:1] == ["plan"]

    def body() -> int:
        settings = load(Settings, words[1:] if planning else words).settings
        configure_logging(settings, Role.SEED_SERVER)
        if planning:
            return asyncio.run(_plan(settings))
        return run_daemon(lambda stop: serve(settings, stop))

    return run_command(body)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`. Raises ConfigError when a range of the shoot would capture what this pod needs."""
    bound = charter(settings)
    async with base(settings, Role.SEED_SERVER) as on:
        _guard(settings)
        config = ListenConfig(
            addresses=tuple((str(a.host), a.port) for a in settings.listen),
            tls=settings.tls,
            wireguard_port=settings.wireguard_port,
            control_plane=settings.control_plane,
            max_streams=settings.max_streams,
            max_unauthenticated=settings.max_unauthenticated,
        )
        allocate = await _allocator(bound, settings.ipam_file)
        async with carrier(settings, config) as link:
            server = SeedServer(
                bound,
                on.plane,
                allocate,
                link.send,
                wireguard_port=settings.wireguard_port,
                resync_s=settings.resync_s,
            )
            async with egress(settings, bound, server) as proxy:
                reporter = Reporter(server, on.choice, settings.tls_certificate, proxy)
                async with health(settings, reporter.status):
                    if proxy is not None:
                        proxy.start()
                    await server.run(link.events(), stop)


def _guard(settings: Settings) -> None:
    verdict = guard_routes(settings.shoot_networks() + settings.tunnel_networks, find_protected())
    if verdict.refused:
        raise ConfigError(*map(str, verdict.refused))


async def _allocator(bound: Charter, file: Path | None) -> Allocate:
    """Tunnel addresses out of the IPAM, sticky per identity, one of each tunnel network.

    Reads the store once, so that an unreadable one is told at start. Raises StoreError.
    """
    store: Store = FileStore(file) if file is not None else MemoryStore()
    book = AddressBook(store, Policy(tuple(Pool.tunnel(network) for network in bound.tunnel_networks)))
    await store.read()

    async def allocate(identity: Identity) -> tuple[IPAddress, ...]:
        owner = Owner(identity.role.value, identity.control_plane, identity.name, str(identity))
        now = time.time()
        return book.policy.addresses(await book.ensure(owner, now, expires=now + ADDRESS_KEPT_S))

    return allocate


async def _plan(settings: Settings) -> int:
    bound = charter(settings)
    async with base(settings, Role.SEED_SERVER) as on:
        _guard(settings)
        registry = Registry(adopted=tuple(on.plane.adopted.peers) if on.plane.adopted else ())
        device = on.plane.device(listen_port=settings.wireguard_port, mtu_bytes=settings.mtu_bytes)
        return await dry_run(on.plane, desired.tunnel(device, bound, registry, {}))


if __name__ == "__main__":
    sys.exit(main())
