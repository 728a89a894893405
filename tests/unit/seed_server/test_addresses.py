from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.identity import Identity, Role
from agent.kinds import Namespaced
from agent.status import PoolHealth
from ipam.ledger import Ledger
from ipam.stores import Store, Version
from ipam.stores.file import UnreadableLedger
from ipam.stores.memory import MemoryStore
from seed_server.addresses import addresses
from seed_server.settings import Settings

NODE_1, NODE_2 = (Identity("shoot--a--b", Role.SHOOT_CLIENT, name) for name in ("node-1", "node-2"))


def settings(file: Path | None = None, configmaps: Namespaced | None = None) -> Settings:
    return Settings(
        control_plane="shoot--a--b",
        tls_ca=Path("ca"),
        tls_certificate=Path("crt"),
        tls_key=Path("key"),
        tunnel_networks=(ip_network("10.0.0.0/28"), ip_network("fd00::/96")),
        node_networks=(ip_network("10.250.0.0/16"),),
        ipam_file=file,
        ipam_configmaps=configmaps,
    )


async def test_the_next_process_gives_what_the_last_one_gave(tmp_path: Path) -> None:
    chosen = settings(tmp_path / "addresses.log")
    async with addresses(chosen) as known:
        second = [await known.allocate(node) for node in (NODE_1, NODE_2)][1]
        assert second == await known.allocate(NODE_2)
    async with addresses(chosen) as known:
        assert known.pools() == (PoolHealth("10.0.0.0/28", 7, 2), PoolHealth("fd00::/96", 2**32 - 8, 2))
        assert await known.allocate(NODE_2) == second


async def test_a_file_that_cannot_be_used_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "addresses.log").write_text("something else\n")
    with pytest.raises(UnreadableLedger):
        async with addresses(settings(tmp_path / "addresses.log")):
            pass


class Away(MemoryStore):
    """A store that is out of reach for a while."""

    here = False
    error = StoreError("the Kubernetes API did not answer")

    async def read(self) -> tuple[Ledger, Version]:
        if not self.here:
            raise self.error
        return await super().read()


async def test_a_store_that_is_out_of_reach_stops_nothing_but_new_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    store, named = Away(), []

    @asynccontextmanager
    async def connect(*words: str) -> AsyncIterator[Store]:
        named.append(words)
        yield store

    monkeypatch.setattr("ipam.stores.kubernetes.connect", connect)
    async with addresses(settings(configmaps=Namespaced("garden", "tunnels"))) as known:
        with pytest.raises(StoreError):
            await known.allocate(NODE_1)
        assert [pool.used for pool in known.pools()] == [0, 0]
        store.here = True
        given = await known.allocate(NODE_1)
        assert len(given) == 2
        assert [pool.used for pool in known.pools()] == [1, 1]
        store.here = False
        assert await known.allocate(NODE_1) == given
        with pytest.raises(StoreError):
            await known.allocate(NODE_2)
        store.error = UnreadableLedger("damaged")
        with pytest.raises(UnreadableLedger):
            await known.allocate(NODE_1)
    assert named == [("garden", "tunnels")]
