"""`rhizome-agent sidecar`: read the settings, put the parts together, run."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

from agent.carrier.api import DialConfig, Up
from agent.carrier.client import stop_carrier
from agent.cleanup import find, remove
from agent.cli.flags import load
from agent.client.client import Client
from agent.client.direct import DirectPath
from agent.client.kit import Kit
from agent.client.reporter import Reporter
from agent.client.role import Guard, View
from agent.daemon import Base, base, carrier, carrier_socket, configure_logging, health, retire, software
from agent.dataplane import DataPlane, open_both
from agent.dryrun import dry_run
from agent.errors import ConfigError, Unsupported
from agent.exits import Exit
from agent.generations import Names
from agent.guard import Protected, Refusal, guard_routes
from agent.identity import Identity, Role
from agent.messages import Offer
from agent.model import IPNetwork
from agent.onetime import is_one_time
from agent.protected import find_protected
from agent.run import run_daemon
from agent.session import Session
from agent.sidecar.desired import SidecarRole
from agent.sidecar.once import Visit
from agent.sidecar.settings import Settings
from agent.wireguard.choose import Mode

#: What the alias of the direct path's device says.
DEVICE_ROLE = f"{Role.SIDECAR.value}-direct"


def run(words: Sequence[str]) -> int:
    """`plan` as the first word: print what would be changed on this host, and change nothing."""
    planning = list(words[:1]) == ["plan"]
    settings = load(Settings, words[1:] if planning else words).settings
    configure_logging(settings, Role.SIDECAR)
    if planning:
        return asyncio.run(_plan(settings))
    _spare_one_time_token(settings.token_file)
    return run_daemon(lambda stop: configure(settings, stop) if settings.once else serve(settings, stop))


def _spare_one_time_token(path: Path | None) -> None:
    """It would be spent on nothing: it makes its holder a shoot client, and a pod's next container would begin without it.
    Raises ConfigError; of a file that cannot be read the carrier tells."""
    try:
        text = path.read_text(errors="replace") if path is not None else ""
    except OSError:
        return
    if is_one_time(text.strip()):
        raise ConfigError(
            f"token_file {path} holds a one-time enrolment token, which is for a shoot client outside Kubernetes: give a sidecar "
            "the projected token of its ServiceAccount, or a certificate; the token was not used"
        )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`."""
    async with AsyncExitStack() as stack:
        on = await stack.enter_async_context(base(settings, Role.SIDECAR))
        kit = Kit(
            on.plane, Names(settings.ifname, settings.wireguard_port), settings.runtime_dir, dial_config(settings)
        )
        plane, beside = await kit.find()
        config = kit.config_of(plane.ifname)
        link = await stack.enter_async_context(carrier(settings, config, plane.ifname))
        direct = await _direct_path(settings, on)
        client = Client(
            SidecarRole(),
            plane,
            Offer(),
            link.send,
            guard(settings, lambda: _reached_at(client.session, client.leg.up)),
            control_plane=settings.control_plane,
            wireguard_port=config.wireguard_port,
            mtu_bytes=settings.mtu_bytes,
            resync_s=settings.resync_s,
            software=software(),
            direct=direct,
            kit=kit,
            config=config,
            beside=beside,
        )
        reporter = Reporter(
            client, Role.SIDECAR, settings.control_plane, on.choice, settings.tls_certificate, settings.token_file
        )
        async with health(settings, reporter.status):
            await client.run(link.events(), stop)


async def configure(settings: Settings, stop: asyncio.Event) -> None:
    """`--once`: set the pod up and leave. Raises RhizomeError when packets do not cross in time; then nothing of this run stays."""
    async with base(settings, Role.SIDECAR) as on:
        if on.choice.kind is not Mode.KERNEL:
            raise Unsupported(
                f"once: {on.choice.reason}; only the kernel's WireGuard goes on without a process: run the sidecar as a "
                "container beside the others, without --once"
            )
        plane = await DataPlane.open(on.choice.backend, on.net, settings.direct_ifname, DEVICE_ROLE)
        try:
            async with carrier(settings, dial_config(settings)) as link:
                visit = Visit(
                    DirectPath(plane, settings.mtu_bytes, time.monotonic()),
                    link.send,
                    guard(settings, lambda: _reached_at(visit.session, visit.up)),
                    control_plane=settings.control_plane,
                    port=settings.wireguard_port,
                    software=software(),
                    resync_s=settings.resync_s,
                )
                await visit.run(link.events(), stop, settings.once_timeout_s)
            for ifname in Names(settings.ifname, settings.wireguard_port).both:
                await retire(on, ifname)
        except BaseException:
            if plane.adopted is None:
                await remove(await find(on.net), (on.choice.backend,), on.net)
            raise
        finally:
            await stop_carrier(carrier_socket(settings.runtime_dir, settings.ifname))


async def _direct_path(settings: Settings, on: Base) -> DirectPath | None:
    """None when it is not wanted; then the device of an earlier run goes."""
    if not settings.direct:
        await retire(on, settings.direct_ifname)
        return None
    plane = await DataPlane.open(on.choice.backend, on.net, settings.direct_ifname, DEVICE_ROLE)
    return DirectPath(plane, settings.mtu_bytes, time.monotonic())


def _reached_at(session: Session, up: Up | None) -> tuple[str, ...]:
    """The server's addresses on the network under the tunnel."""
    grant = session.grant
    endpoints = grant.direct.endpoints if grant is not None and grant.direct is not None else ()
    stream = up.peer.rpartition(":")[0].strip("[]").removeprefix("::ffff:") if up else ""
    return tuple(filter(None, (stream, *(str(endpoint.address) for endpoint in endpoints))))


def dial_config(settings: Settings) -> DialConfig:
    """Straight to the server: it is in the same cluster."""
    return DialConfig(
        host=settings.server.host,
        port=settings.server.port,
        server_name=settings.sni(),
        tls=settings.tls,
        wireguard_port=settings.wireguard_port,
        expected_identity=str(Identity(settings.control_plane, Role.SEED_SERVER)),
        token_file=settings.token,
    )


def guard(settings: Settings, reached_at: Callable[[], Sequence[str]]) -> Guard:
    """The server is trusted with the shoot's ranges, not with this pod's way to everything else. `reached_at` is where the
    server is, outside of the tunnel, as far as that is known."""

    def refusals(networks: Sequence[IPNetwork]) -> tuple[Refusal, ...]:
        protected = [*find_protected(), *(Protected(n, "protected_networks") for n in settings.protected_networks)]
        protected += [Protected(ip_network(ip_address(host)), "the seed server itself") for host in reached_at()]
        return guard_routes(networks, protected).refused

    return refusals


async def _plan(settings: Settings) -> int:
    """Everything but the device itself comes with the server's grant, so there is little to plan without one."""
    async with base(settings, Role.SIDECAR) as on:
        plane, _ = await open_both(on.plane, Names(settings.ifname, settings.wireguard_port))
        if plane.adopted is not None:
            sys.stdout.write(
                f"{plane.ifname} is ours and is kept as it is until the server has spoken; nothing to change\n"
            )
            return Exit.OK
        device = on.plane.device(listen_port=settings.wireguard_port, mtu_bytes=settings.mtu_bytes)
        code = await dry_run(on.plane, SidecarRole().tunnel(device, View(None)))
        sys.stdout.write("then addresses, routes and peer as the server grants them\n")
        return code
