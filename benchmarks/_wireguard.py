"""The part of the WireGuard benchmark that runs in a network namespace of its own, perhaps in a virtual machine.

python -m benchmarks._wireguard userspace|kernel: one JSON object per figure.
"""

from __future__ import annotations

import asyncio
import base64
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from agent.host import CreateDevice, SetDevice, SetPeer, WireGuard
from agent.keys import generate_private_key
from agent.model import Endpoint, IPNetwork, PublicKey
from agent.wireguard.choose import Mode, choose
from benchmarks.figure import Figure

PEERS, PREFIXES = 1_000, 10_000
PYROUTE_CHUNK = 2_000  # its messages hold 2,338 allowed-ips
IFNAME = "rzbench0"
CREATE = CreateDevice(IFNAME, 1420, "rhizome benchmark")


def many_peers() -> list[SetPeer]:
    return [
        SetPeer(
            IFNAME,
            PublicKey(os.urandom(31) + b"\1"),
            frozenset({IPv4Network((0x0A000000 + number, 32)), IPv6Network(((0xFD00 << 112) + number, 128))}),
            Endpoint(IPv4Address("192.0.2.1"), 1024 + number),
            persistent_keepalive_s=25,
        )
        for number in range(PEERS)
    ]


def one_large_peer() -> list[SetPeer]:
    networks: list[IPNetwork] = [IPv4Network((0x0A000000 + (number << 8), 24)) for number in range(PREFIXES)]
    return [SetPeer(IFNAME, PublicKey(os.urandom(31) + b"\1"), frozenset(networks))]


class Stopwatch:
    """Each sample starts from a device without peers. Medians, in seconds."""

    def __init__(self, wg: WireGuard, samples: int) -> None:
        self.wg = wg
        self.samples = samples

    async def fresh(self) -> None:
        await self.wg.delete(IFNAME)
        await self.wg.create(CREATE)
        await self.wg.apply([SetDevice(IFNAME, generate_private_key())])

    async def time(
        self, work: Callable[[], Awaitable[object]], samples: int | None = None, fresh: bool = True
    ) -> float:
        taken = []
        for _ in range(samples or self.samples):
            if fresh:
                await self.fresh()
            began = time.perf_counter()
            await work()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


WORKLOADS = ((f"{PEERS}_peers", many_peers), (f"{PREFIXES}_allowed_ips", one_large_peer))


async def userspace() -> list[Figure]:
    choice = await choose(Mode.USERSPACE)
    watch = Stopwatch(choice.backend, 5)
    figures = []
    for name, make in WORKLOADS:
        steps = make()
        text = wg_configuration(steps)
        figures += await compare(
            watch,
            f"wireguard.userspace.{{}}_{name}_s",
            "baseline wg(8)",
            (partial(choice.backend.apply, steps), partial(wg, "addconf", IFNAME, "/dev/stdin", stdin=text)),
            (partial(choice.backend.read, IFNAME), partial(wg, "show", IFNAME, "dump")),
        )
    taken = await watch.time(watch.fresh, fresh=False)
    figures.append(
        Figure("wireguard.userspace.recreate_s", taken, "s", None, watch.samples, "delete, create, set a key")
    )
    await choice.backend.apply(many_peers())
    mib = rss_mib(IFNAME)
    figures.append(Figure(f"wireguard.userspace.rss_{PEERS}_peers_mib", mib, "MiB", None, 1, "idle wireguard-go"))
    await choice.backend.delete(IFNAME)
    return figures


async def kernel() -> list[Figure]:
    choice = await choose(Mode.KERNEL)
    watch = Stopwatch(choice.backend, 3)
    theirs = await PyrouteWireGuard.open()
    figures = []
    for name, make in WORKLOADS:
        steps = make()
        figures += await compare(
            watch,
            f"wireguard.kernel.{{}}_{name}_s",
            "baseline pyroute2's WireGuard",
            (partial(choice.backend.apply, steps), partial(theirs.apply, steps)),
            (partial(choice.backend.read, IFNAME), theirs.read),
            baseline_samples=1,  # they take long in a virtual machine
        )
    await choice.backend.apply(many_peers())
    taken = await watch.time(partial(choice.backend.delete, IFNAME), samples=1, fresh=False)
    figures.append(Figure(f"wireguard.kernel.delete_{PEERS}_peers_s", taken, "s"))
    return figures


Work = Callable[[], Awaitable[object]]


async def compare(
    watch: Stopwatch,
    name: str,
    note: str,
    setting: tuple[Work, Work],
    reading: tuple[Work, Work],
    baseline_samples: int | None = None,
) -> list[Figure]:
    """Ours and theirs, set on a fresh device and read from a full one."""
    figures = []
    for verb, (ours, theirs), fresh in (("set", setting, True), ("read", reading, False)):
        value = await watch.time(ours, fresh=fresh)
        baseline = await watch.time(theirs, samples=baseline_samples, fresh=fresh)
        figures.append(Figure(name.format(verb), value, "s", baseline, watch.samples, note))
    return figures


class PyrouteWireGuard:
    """What a program does that has nothing but pyroute2's WireGuard class."""

    def __init__(self, wireguard: Any) -> None:
        self._wireguard = wireguard

    @classmethod
    async def open(cls) -> PyrouteWireGuard:
        from pyroute2 import AsyncWireGuard

        wireguard = AsyncWireGuard()
        await wireguard.setup_endpoint()
        return cls(wireguard)

    async def apply(self, steps: list[SetPeer]) -> None:
        for step in steps:
            peer: dict[str, Any] = {"public_key": str(step.public_key)}
            if step.endpoint is not None:
                peer |= {"endpoint_addr": str(step.endpoint.address), "endpoint_port": step.endpoint.port}
            if step.persistent_keepalive_s is not None:
                peer["persistent_keepalive"] = step.persistent_keepalive_s
            networks = [str(network) for network in step.add_allowed_ips]
            for start in range(0, len(networks), PYROUTE_CHUNK):
                chunk = networks[start : start + PYROUTE_CHUNK]
                await self._wireguard.set(IFNAME, peer=peer | {"allowed_ips": chunk})

    async def read(self) -> dict[bytes, list[str]]:
        """Public keys and allowed-ips only; its decoder is lazy, so looking is part of reading."""
        found: dict[bytes, list[str]] = {}
        async for message in await self._wireguard.info(IFNAME):
            for peer in message.get_attr("WGDEVICE_A_PEERS") or []:
                networks = found.setdefault(peer.get_attr("WGPEER_A_PUBLIC_KEY"), [])
                networks += [entry["addr"] for entry in peer.get_attr("WGPEER_A_ALLOWEDIPS") or []]
        return found


async def wg(*words: str, stdin: str = "") -> None:
    process = await asyncio.create_subprocess_exec(
        "wg", *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, said = await process.communicate(stdin.encode())
    if process.returncode:
        raise RuntimeError(f"wg {' '.join(words)}: {said.decode()}")


def wg_configuration(steps: list[SetPeer]) -> str:
    lines: list[str] = []
    for step in steps:
        lines += ["[Peer]", f"PublicKey = {base64.b64encode(step.public_key.raw).decode()}"]
        lines += [f"AllowedIPs = {', '.join(map(str, step.add_allowed_ips))}"]
        if step.endpoint is not None:
            lines += [f"Endpoint = {step.endpoint}", f"PersistentKeepalive = {step.persistent_keepalive_s}"]
    return "\n".join([*lines, ""])


def rss_mib(ifname: str) -> float:
    for process in Path("/proc").glob("[0-9]*"):
        with (process / "cmdline").open("rb") as file:
            words = file.read().split(b"\0")
        if len(words) > 1 and words[0].endswith(b"wireguard-go") and words[1] == ifname.encode():
            pages = int((process / "statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    raise RuntimeError(f"no wireguard-go of {ifname}")


def main() -> None:
    for figure in asyncio.run({"userspace": userspace, "kernel": kernel}[sys.argv[1]]()):
        print(figure.to_json(), flush=True)


if __name__ == "__main__":
    main()
