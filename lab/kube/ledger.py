"""Address ledgers on a real kube-apiserver, by an account that may do what examples/ipam-rbac.yaml or the seed server's chart grants and nothing else."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from agent.kubeaccess import async_connection
from ipam.model import UNCONFIRMED, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.kubeapi import ConfigMaps
from ipam.stores.kubernetes import KubernetesStore
from ipam.usage import contradictions
from lab.kube.plane import ControlPlane

RIGHTS = Path(__file__).parents[2] / "examples" / "ipam-rbac.yaml"
NAMESPACE = ACCOUNT = "rhizome-ipam"
POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/20")), Pool.tunnel(IPv6Network("fd00::/96"))))
SHARDS = 8
#: Of a pod's account, below its /run.
TOKEN = Path("secrets/kubernetes.io/serviceaccount/token")


def owner(name: str) -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, "uid")


def kubeconfig(plane: ControlPlane, path: Path, url: str) -> Path:
    """A kubeconfig of the account, with a token that ends within the hour."""
    token = plane.kubectl("create", "token", ACCOUNT, "-n", NAMESPACE).strip()
    known = json.loads(plane.kubeconfig.read_text())
    known["clusters"][0]["cluster"]["server"] = url
    known["users"][0]["user"] = {"token": token}
    path.touch(mode=0o600)
    path.write_text(json.dumps(known))
    return path


def as_pod(plane: ControlPlane, run: Path, namespace: str, account: str) -> dict[str, str]:
    """Put the account's files where a pod with this /run has them (/var/run is a link to it). The environment that goes with them."""
    place = (run / TOKEN).parent
    place.mkdir(parents=True)
    (run / TOKEN).touch(mode=0o600)
    (run / TOKEN).write_text(plane.kubectl("create", "token", account, "-n", namespace).strip())
    (place / "namespace").write_text(namespace)
    (place / "ca.crt").write_bytes(plane.ca.certificate.read_bytes())
    at = urlsplit(plane.url)
    host, port = str(at.hostname), str(at.port)
    return {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port, "KUBECONFIG": str(run / "none")}


class Way:
    """A TCP relay to the API server that can swallow its answers: what was asked is done, and nobody hears of it."""

    def __init__(self, url: str) -> None:
        self.target = urlsplit(url)
        self.swallow = False
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, down: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task, writers = asyncio.current_task(), [back]
        assert task is not None
        self._tasks.add(task)
        try:
            up, onward = await asyncio.open_connection(self.target.hostname, self.target.port)
            writers.append(onward)
            pumps = [
                asyncio.ensure_future(self._pump(down, onward, False)),
                asyncio.ensure_future(self._pump(up, back, True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for writer in writers:
                writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if answers and self.swallow:
                    return
                sink.write(data)
                await sink.drain()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


class LedgerLab:
    """Ways to one ledger."""

    def __init__(self, plane: ControlPlane, directory: Path, name: str) -> None:
        self.plane, self.name = plane, name
        self.way = Way(plane.url)
        self.kubeconfig = directory / "kubeconfig"
        self.clients: list[httpx2.AsyncClient] = []

    async def start(self) -> None:
        await self.way.start()
        kubeconfig(self.plane, self.kubeconfig, f"https://127.0.0.1:{self.way.port}")

    async def stop(self) -> None:
        for each in self.clients:
            await each.aclose()
        await self.way.stop()

    async def maps(self) -> ConfigMaps:
        self.clients.append(async_connection(self.kubeconfig))
        return ConfigMaps(self.clients[-1], NAMESPACE, self.name)

    async def store(self) -> KubernetesStore:
        return KubernetesStore(await self.maps(), self.name, SHARDS)

    async def book(self, attempts: int = 200) -> AddressBook:
        return AddressBook(await self.store(), POLICY, attempts=attempts)

    async def check(self) -> dict[str, list[str]]:
        """Who has what; everything holds together and no claim is left over."""
        ledger, _ = await (await self.store()).read()
        assert not contradictions(ledger)
        return {a.owner.name: list(map(str, a.blocks)) for a in ledger if a.owner.kind != UNCONFIRMED}

    async def restart_api_server(self) -> None:
        self.plane.api_server.kill()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(self.plane.start_api_server)
