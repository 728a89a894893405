"""The way to a ledger in ConfigMaps for those who may not have the library for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.errors import Unsupported
from ipam.stores import Store


@asynccontextmanager
async def in_configmaps(namespace: str, name: str) -> AsyncIterator[Store]:
    """The ledger `name` in this namespace, by kubeconfig or as the pod that we are. Raises Unsupported without the library, StoreError."""
    try:
        from ipam.stores.kubernetes import connect  # 10 MiB of memory, only when it is used
    except ImportError as exc:
        raise Unsupported(
            "a ledger in ConfigMaps needs the Python package lightkube: pip install 'rhizome[kubernetes]'"
        ) from exc
    async with connect(namespace, name) as store:
        yield store
