from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network

import pytest

from agent.errors import StoreError
from ipam.model import Block, Owner, Policy, Pool
from ipam.service import AddressBook
from ipam.stores.kubernetes import KubernetesStore
from lab.ipam.maps import Client, Fault, Server

POLICY = Policy((Pool(IPv4Network("10.0.0.0/24")), Pool(IPv6Network("fd00::/120"))))


@pytest.mark.parametrize("at", range(9))
async def test_a_writer_knows_of_the_claims_that_it_could_not_take_back(at: int) -> None:
    """Whichever request of a write is lost: the writer sees what a process that begins now sees."""
    server = Server()
    client = Client(server)
    store = KubernetesStore(client, "l", 3)
    book = AddressBook(store, POLICY)
    for n in range(8):
        await book.ensure(Owner("k", "ns", f"n{n}", "u"), 0.0, expires=10.0)
    client.fault, client.fault_at = Fault.LOST_REQUEST, at
    with suppress(StoreError):
        await book.ensure(Owner("k", "ns", "late", "u"), 1000.0)
    client.fault_at = -1
    assert await seen(store) == await seen(KubernetesStore(Client(server), "l", 3))


async def seen(store: KubernetesStore) -> dict[Owner, tuple[Block, ...]]:
    ledger, _ = await store.read()
    return {allocation.owner: allocation.blocks for allocation in ledger}
