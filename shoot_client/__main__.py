"""rhizome-shoot-client: read the settings, put the parts together, run."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from agent.carrier.api import DialConfig, Proxy
from agent.carrier.proxyenv import proxy_from_environment
from agent.cli.flags import load
from agent.client.client import Client
from agent.client.keeper import Keeper
from agent.client.kit import Kit
from agent.client.reporter import Reporter
from agent.client.role import View
from agent.daemon import base, carrier, configure_logging, health, software
from agent.dataplane import open_both
from agent.dryrun import dry_run
from agent.errors import ConfigError
from agent.exits import Exit
from agent.files import stamp
from agent.generations import Names
from agent.guard import Refusal, guard_routes
from agent.identity import Identity, Role
from agent.messages import Offer
from agent.model import IPNetwork
from agent.protected import find_protected
from agent.run import run_command, run_daemon, spawn
from shoot_client import desired, facts
from shoot_client.nodeapi import follow
from shoot_client.nodeobject import NodeFacts
from shoot_client.settings import Settings

log = logging.getLogger("rhizome.shoot")

FACTS_EVERY_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. `plan` as the first word: print what would be changed on this host, and change nothing."""
    words = list(sys.argv[1:] if argv is None else argv)
    planning = words[:1] == ["plan"]

    def body() -> int:
        settings = load(Settings, words[1:] if planning else words).settings
        configure_logging(settings, Role.SHOOT_CLIENT)
        if planning:
            return asyncio.run(_plan(settings))
        return run_daemon(lambda stop: serve(settings, stop))

    return run_command(body)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`."""
    facts_of = Facts(settings)
    async with AsyncExitStack() as stack:
        on = await stack.enter_async_context(base(settings, Role.SHOOT_CLIENT))
        kit = Kit(
            on.plane, Names(settings.ifname, settings.wireguard_port), settings.runtime_dir, dial_config(settings)
        )
        plane, beside = await kit.find()
        config = kit.config_of(plane.ifname)
        link = await stack.enter_async_context(carrier(settings, config, plane.ifname))
        client = Client(
            desired.ShootRole(node(settings)),
            plane,
            facts_of.offer,
            link.send,
            guard,
            control_plane=settings.control_plane,
            wireguard_port=config.wireguard_port,
            mtu_bytes=settings.mtu_bytes,
            resync_s=settings.resync_s,
            software=software(),
            keeper=Keeper(settings.token_file) if settings.token_file is not None else None,
            kit=kit,
            config=config,
            beside=beside,
        )
        if settings.facts_file is not None:
            spawn(facts_of.watch_file(client.set_offer), name="shoot.facts")
        if settings.node_object:
            follow(facts_of.node_name, settings.kubeconfig, lambda found: facts_of.found(found, client.set_offer))
        reporter = Reporter(
            client,
            Role.SHOOT_CLIENT,
            settings.control_plane,
            on.choice,
            settings.tls_certificate,
            settings.token_file,
        )
        async with health(settings, reporter.status):
            await client.run(link.events(), stop)


def dial_config(settings: Settings) -> DialConfig:
    return DialConfig(
        host=settings.server.host,
        port=settings.server.port,
        server_name=settings.sni(),
        tls=settings.tls,
        wireguard_port=settings.wireguard_port,
        proxies=_proxies(settings),
        expected_identity=str(Identity(settings.control_plane, Role.SEED_SERVER)),
        token_file=settings.token,
    )


def _proxies(settings: Settings) -> tuple[Proxy, ...]:
    if settings.proxies or not settings.proxy_from_environment:
        return settings.proxy_chain()
    found = proxy_from_environment(os.environ, settings.server.host, settings.server.port)
    return (found,) if found is not None else ()


def node(settings: Settings) -> desired.Node:
    return desired.Node(settings.masquerade, settings.masquerade_exempt)


def guard(networks: Sequence[IPNetwork]) -> tuple[Refusal, ...]:
    """The server is trusted with its own tunnel network, not with this node's way to the rest of the world."""
    return guard_routes(networks, find_protected()).refused


class Facts:
    """What this node could carry, from all sources together. Raises ConfigError for settings or a file that say nonsense."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.node_name = settings.node_name or socket.gethostname().lower()
        self._said = self._read()
        self._of_node = Offer()

    @property
    def offer(self) -> Offer:
        return facts.merge(self._said, self._of_node)

    def found(self, node: NodeFacts, tell: Callable[[Offer], None]) -> None:
        """The Node object was read for the first time, or has changed."""
        self._of_node = node.offer
        listed = ", ".join(map(str, node.offer.all())) or "nothing"
        log.info("the Node object says: %s", listed, extra={"event": "facts.node"})
        tell(self.offer)

    async def watch_file(self, tell: Callable[[Offer], None]) -> None:
        """A file that is wrong for a moment changes nothing: the last good facts stay, and the log says why."""
        assert self._settings.facts_file is not None
        before = stamp(self._settings.facts_file)
        while True:
            await asyncio.sleep(FACTS_EVERY_S)
            if (seen := stamp(self._settings.facts_file)) == before:
                continue
            before = seen
            try:
                self._said = self._read()
            except ConfigError as exc:
                log.warning("the facts stay as they were: %s", exc, extra={"event": "facts.bad"})
            else:
                log.info("facts read again", extra={"event": "facts.read"})
                tell(self.offer)

    def _read(self) -> Offer:
        given = self._settings
        offer = facts.offer(given.node_addresses, given.pod_cidrs, given.service_cidrs, given.node_cidrs)
        return offer if given.facts_file is None else facts.merge(offer, facts.read_file(given.facts_file))


async def _plan(settings: Settings) -> int:
    """Everything but the device itself comes with the server's grant, so there is little to plan without one."""
    Facts(settings)
    async with base(settings, Role.SHOOT_CLIENT) as on:
        plane, _ = await open_both(on.plane, Names(settings.ifname, settings.wireguard_port))
        if plane.adopted is not None:
            sys.stdout.write(
                f"{plane.ifname} is ours and is kept as it is until the server has spoken; nothing to change\n"
            )
            return Exit.OK
        device = on.plane.device(listen_port=settings.wireguard_port, mtu_bytes=settings.mtu_bytes)
        code = await dry_run(on.plane, desired.tunnel(device, node(settings), View(None)))
        sys.stdout.write("then addresses, routes, peer and firewall as the server grants them\n")
        return code


if __name__ == "__main__":
    sys.exit(main())
