"""rhizome-seed-server: read the settings, put the parts together, run."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address

from agent import sysctl
from agent.carrier.api import ListenConfig
from agent.cli.flags import load
from agent.daemon import Base, base, carrier, configure_logging, health, retire
from agent.dataplane import DataPlane
from agent.denyfile import read, watch
from agent.denylist import DenyList
from agent.dryrun import dry_run
from agent.errors import ConfigError
from agent.generations import Names
from agent.guard import guard_routes
from agent.identity import Role
from agent.model import Endpoint
from agent.protected import find_protected
from agent.run import run_command, run_daemon, spawn
from agent.status import ASKED_KEYS_SUFFIX, ASKED_SUFFIX
from seed_server import desired
from seed_server.addresses import addresses
from seed_server.audit import Audit, AuditFile
from seed_server.charter import Charter, charter
from seed_server.direct import DirectSide, Secrets
from seed_server.egress_link import egress
from seed_server.generations import Generations
from seed_server.once import OnceFile
from seed_server.preshared import Rotation
from seed_server.reporter import Reporter
from seed_server.roster import Roster
from seed_server.server import SeedServer
from seed_server.settings import Settings
from seed_server.succession import Succession, listening
from seed_server.warden import Warden

#: What the alias of the direct device says.
DIRECT_ROLE = f"{Role.SEED_SERVER.value}-direct"


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
    bound = charter(settings, no_sidecars=_cannot_forward())
    async with base(settings, Role.SEED_SERVER) as on:
        _guard(settings)
        config = ListenConfig(
            addresses=tuple((str(a.host), a.port) for a in settings.listen),
            tls=settings.tls,
            wireguard_port=settings.wireguard_port,
            control_plane=settings.control_plane,
            max_streams=settings.max_streams,
            max_unauthenticated=settings.max_unauthenticated,
            tokens=settings.takes_tokens,
        )
        stream = await Generations.find(on.plane, names(settings), settings.mtu_bytes)
        config = listening(config, stream)
        warden = Warden(time.time, DenyList() if settings.deny_file is None else read(settings.deny_file))
        audit = _audit(settings)
        direct = await _direct(settings, on, bound)
        once = OnceFile(settings.once_file) if settings.once_file is not None else None
        async with addresses(settings) as known, carrier(settings, config) as link:
            sidecars = known.sidecars(settings.control_plane)
            left = once.load(sidecars) if once is not None and direct is not None else ()
            server = SeedServer(
                bound,
                stream,
                known.allocate,
                link.send,
                resync_s=settings.resync_s,
                known=sidecars,
                direct=direct,
                warden=warden,
                audit=audit,
                once=once,
                left=left,
            )
            if settings.deny_file is not None:
                server.deny(warden.denied)
                spawn(watch(settings.deny_file, server.deny), name="seed.denylist", vital=True)
            events = link.events()
            if settings.takes_tokens:
                from seed_server.tokens.setup import gate  # 20 MiB, only where it is used

                events = gate(settings, link.send, time.time, server).pass_on(events)
            rotation = Rotation(
                lambda: server.registry,
                server.renew_preshared_keys,
                lifetime_s=settings.psk_lifetime_s,
                asked=settings.runtime_dir / f"{settings.ifname}{ASKED_SUFFIX}",
            )
            spawn(rotation.run(), name="seed.rotation", vital=True)
            succession = Succession(
                server,
                link.send,
                config,
                lifetime_s=settings.wireguard_key_lifetime_s,
                order=settings.runtime_dir / f"{settings.ifname}{ASKED_KEYS_SUFFIX}",
            )
            spawn(succession.run(), name="seed.succession", vital=True)
            async with egress(settings, bound, server) as proxy:
                reporter = Reporter(server, succession, on.choice, settings.tls_certificate, known, proxy)
                async with health(settings, reporter.status):
                    if proxy is not None:
                        proxy.start()
                    await server.run(events, stop)


def names(settings: Settings) -> Names:
    return Names(settings.ifname, settings.wireguard_port)


def _audit(settings: Settings) -> Audit | None:
    """Raises ConfigError."""
    if settings.audit_log is None:
        return None
    try:
        file = AuditFile(settings.audit_log)
    except OSError as exc:
        raise ConfigError(f"audit_log: cannot write to {settings.audit_log}: {exc.strerror}") from exc
    return Audit(settings.control_plane, file.write, time.time, time.monotonic)


def _guard(settings: Settings) -> None:
    verdict = guard_routes(settings.shoot_networks() + settings.tunnel_networks, find_protected())
    if verdict.refused:
        raise ConfigError(*map(str, verdict.refused))


async def _direct(settings: Settings, on: Base, bound: Charter) -> DirectSide | None:
    """None when it is not configured; then the device of an earlier configuration goes."""
    if not settings.direct_endpoints:
        await retire(on, settings.direct_ifname)
        return None
    secrets = Secrets.load(settings.direct_secret, settings.tls_key)
    plane = await DataPlane.open(on.choice.backend, on.net, settings.direct_ifname, DIRECT_ROLE, secrets.device_key())
    return DirectSide(
        plane,
        secrets,
        port=settings.direct_port,
        mtu_bytes=settings.mtu_bytes,
        addresses=bound.direct_addresses,
        endpoints=tuple(Endpoint(ip_address(e.host), e.port) for e in settings.direct_endpoints),
    )


def _cannot_forward() -> str:
    """Why this host cannot pass packets on from a sidecar to a client, empty when it can."""
    keys = [key for key, value in desired.FORWARDING.values() if sysctl.read(key) not in (None, value)]
    if stuck := [key for key in keys if not os.access(sysctl.path_of(key), os.W_OK)]:
        return f"{', '.join(stuck)} is 0 on the seed server and cannot be set there: set it in its pod's securityContext.sysctls"
    return ""


async def _plan(settings: Settings) -> int:
    bound = charter(settings)
    async with base(settings, Role.SEED_SERVER) as on:
        _guard(settings)
        stream = await Generations.find(on.plane, names(settings), settings.mtu_bytes)
        registry = Roster(bound, stream, {}, None).registry
        device, *more = [stream.device(plane) for plane in stream.planes]
        want = desired.tunnel(device, bound, registry, {}, successor=more[0] if more else None)
        return await dry_run(on.plane, want)


if __name__ == "__main__":
    sys.exit(main())
