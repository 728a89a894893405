"""A stand-in for the API server that is as strict (lab.apiserver), and any number of processes that keep a ledger there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, IPv6Network

import httpx2
import pytest

from ipam.model import Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.kubeapi import ConfigMaps
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.shards import Shard, parse
from lab.apiserver import ApiServer

POLICY = Policy((Pool.tunnel(IPv4Network("10.0.0.0/20")), Pool.tunnel(IPv6Network("fd00::/96"))))
COUNT = 4


def owner(name: str) -> Owner:
    return Owner("shoot-client", "shoot--a--b", name, "uid")


class World:
    """One API server, and as many processes as wanted, each with a client of its own."""

    def __init__(self) -> None:
        self.server = ApiServer()
        self.url = ""
        self.clients: list[httpx2.AsyncClient] = []

    def store(self, count: int = COUNT) -> KubernetesStore:
        return KubernetesStore(self.maps(), "ledger", count)

    def maps(self) -> ConfigMaps:
        self.clients.append(httpx2.AsyncClient(base_url=self.url))
        return ConfigMaps(self.clients[-1], "garden", "ledger")

    def book(self, attempts: int = 100) -> AddressBook:
        return AddressBook(self.store(), POLICY, attempts=attempts)

    async def shards(self) -> dict[int, Shard]:
        items, _ = await self.maps().everything(whole=True)
        return {shard.index: shard for shard in (parse(item.text or "") for item in items)}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.url = await world.server.start()
    try:
        yield world
    finally:
        for each in world.clients:
            await each.aclose()
        await world.server.stop()
        await asyncio.sleep(0)
