"""A seed server that is replaced by a new one on an empty host, and clients that come back one after the other."""

from __future__ import annotations

from collections.abc import Iterable

from lab.daemons import Daemon, program


def come(clients: Iterable[Daemon]) -> None:
    """Each is ready before the next one starts."""
    for client in clients:
        client.start()
        client.wait_ready()


def go(daemons: Iterable[Daemon]) -> None:
    """Nothing of them is left on their machines: no device, no carrier, no stream."""
    for daemon in daemons:
        daemon.stop()
        daemon.machine.run([program("rhizome-agent"), "cleanup"])


def given(server: Daemon) -> dict[str, tuple[str, ...]]:
    """Name of each client -> its tunnel addresses."""
    return {peer.name: peer.addresses for peer in server.status().peers}


def used(server: Daemon) -> dict[str, float]:
    """Tunnel network -> addresses that are held, as the metrics say."""
    prefix, end = 'rhizome_ipam_pool_used{pool="', '"}'
    return {
        name.removeprefix(prefix).removesuffix(end): value
        for name, value in server.metrics().items()
        if name.startswith(prefix)
    }
