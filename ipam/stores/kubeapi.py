"""The border to the Kubernetes API: ConfigMaps of one ledger, over the connections of agent.kubeaccess.

A list answers with metadata alone where that is enough, and a write is sent once by us. (What is between us and the API server may send it
twice when a connection breaks; so a 409 never proves that nothing was written.)
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from agent.errors import ConfigError, Conflict, Retry, StoreError
from agent.kubeaccess import TROUBLE, async_connection

TIMEOUT_S = 15.0
#: How often a request is sent again that the API server did not take (429), and how long it may make us wait.
BUSY_TRIES = 5
BUSY_WAIT_MAX_S = 5.0
PAGE = 500
WATCH_S = 240

LABEL = "rhizome/ledger"
_KEY = "shard.json"
#: RBAC's words for requests; GET is `get` or `list`.
_VERBS = {"POST": "create", "PUT": "update", "WATCH": "watch", "DELETE": "delete"}
_METADATA = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"


class Gone(StoreError):
    """The place to continue a list or a watch at is forgotten: begin again."""

    retry = Retry.NOW


class Forbidden(StoreError):
    """The API server knows us not, or lets us not."""

    retry = Retry.NEVER


@dataclass(frozen=True, slots=True)
class Object:
    """One ConfigMap. `text` is None when only its metadata was asked for."""

    name: str
    uid: str
    version: str
    text: str | None

    @classmethod
    def of(cls, item: dict[str, Any]) -> Object:
        meta = item["metadata"]
        data = item.get("data")
        return cls(meta["name"], meta["uid"], meta["resourceVersion"], data.get(_KEY, "") if data else None)


class ConfigMaps:
    """The ConfigMaps of one ledger in one namespace."""

    def __init__(self, api: httpx2.AsyncClient, namespace: str, ledger: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._namespace = namespace
        self._ledger = ledger

    async def everything(self, *, whole: bool) -> tuple[list[Object], str]:
        """All of one moment, and the collection's version. Raises StoreError."""
        while True:
            try:
                return await self._pages(whole)
            except Gone:
                await asyncio.sleep(0.1)

    async def _pages(self, whole: bool) -> tuple[list[Object], str]:
        found: list[Object] = []
        query = {"labelSelector": f"{LABEL}={self._ledger}", "limit": str(PAGE)}
        while True:
            accept = "application/json" if whole else _METADATA.format("List")
            page = await self._call("GET", self._path, query, accept=accept)
            found += map(Object.of, page["items"])
            if not (more := page["metadata"].get("continue")):
                return found, page["metadata"]["resourceVersion"]
            query["continue"] = more

    async def get(self, name: str) -> Object:
        """Raises StoreError."""
        return Object.of(await self._call("GET", f"{self._path}/{name}"))

    async def create(self, name: str, text: str) -> Object:
        """Raises Conflict when it is there already, StoreError."""
        return Object.of(await self._call("POST", self._path, body=self._body(name, text, {})))

    async def replace(self, known: Object, text: str) -> Object:
        """Raises Conflict when it was changed since it was read, StoreError."""
        meta = {"resourceVersion": known.version, "uid": known.uid}
        return Object.of(await self._call("PUT", f"{self._path}/{known.name}", body=self._body(known.name, text, meta)))

    async def changed(self, version: str) -> None:
        """Return at the first change after this version of the collection, or when there may have been one."""
        query = {
            "labelSelector": f"{LABEL}={self._ledger}",
            "watch": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
        }
        async with self._answer("GET", self._path, query, None, _METADATA.format(""), WATCH_S + TIMEOUT_S) as answer:
            if answer.status_code == 200:
                await anext(answer.aiter_bytes(), b"")
            elif answer.status_code != 410:
                self._check(answer.status_code, await answer.aread(), "WATCH", self._path)

    def _body(self, name: str, text: str, meta: dict[str, str]) -> dict[str, Any]:
        labels = {LABEL: self._ledger, "app.kubernetes.io/managed-by": "rhizome-ipam"}
        metadata = {"name": name, "namespace": self._namespace, "labels": labels, **meta}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {_KEY: text}}

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        accept: str = "application/json",
    ) -> dict[str, Any]:
        for attempt in range(BUSY_TRIES):
            async with self._answer(method, path, query, body, accept, TIMEOUT_S) as answer:
                content = await answer.aread()
                if answer.status_code != 429 or attempt == BUSY_TRIES - 1:
                    self._check(answer.status_code, content, method, path)
                    parsed: dict[str, Any] = json.loads(content)
                    return parsed
                wait = answer.headers.get("Retry-After", "1")
            await asyncio.sleep(min(float(wait) if wait.isdigit() else 1.0, BUSY_WAIT_MAX_S))
        raise AssertionError("the last attempt answers")

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: dict[str, Any] | None,
        accept: str,
        timeout_s: float,
    ) -> AsyncIterator[httpx2.Response]:
        """Raises StoreError; what was sent may have happened."""
        request = self._api.build_request(method, path, params=query, json=body, headers={"Accept": accept})
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._api.send(request, stream=True)
                try:
                    yield answer
                finally:
                    await answer.aclose()
        except TimeoutError as exc:
            raise StoreError(
                f"the Kubernetes API did not answer {method} {path} within {timeout_s:.0f} s; is it up, and may we reach it (NetworkPolicy)?"
            ) from exc
        except TROUBLE as exc:
            raise StoreError(
                f"{method} {path}: no usable answer of the Kubernetes API: {exc or type(exc).__name__}"
            ) from exc

    def _check(self, status: int, content: bytes, method: str, path: str) -> None:
        if 200 <= status < 300:
            return
        said = _message(content) or f"status {status}"
        if status == 409:
            raise Conflict(f"{path} was changed since it was read: {said}")
        if status == 410:
            raise Gone(said)
        if status in (401, 403):
            raise Forbidden(f"{method} {path}: {said}; {self._advice(status, said, method, path)}")
        raise StoreError(f"{method} {path}: the Kubernetes API says: {said}")

    def _advice(self, status: int, said: str, method: str, path: str) -> str:
        """What to do about a refusal."""
        if status == 401:
            return "our token or certificate is not accepted: is the account still there, and is this its own cluster?"
        verb = _VERBS.get(method) or ("list" if path == self._path else "get")
        if f"cannot {verb} " not in said:
            return "this is not RBAC's no, but that of a quota, of an admission rule, or of a namespace that ends"
        return (
            f"the ledger {self._ledger} needs `{verb}` of ConfigMaps in namespace {self._namespace}: add it to this account's Role "
            f"({self._ledger}, where the seed server's chart made it), as examples/ipam-rbac.yaml has it"
        )


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")


def _kubeconfig() -> Path | None:
    """The one that is there, if any. Raises StoreError for several: they are not merged."""
    names = os.environ.get("KUBECONFIG") or "~/.kube/config"
    found = [path for name in names.split(os.pathsep) if name and (path := Path(name).expanduser()).exists()]
    if len(found) > 1:
        raise StoreError(f"KUBECONFIG names several files, {names}: name the one to use")
    return found[0] if found else None


@asynccontextmanager
async def connected(namespace: str, ledger: str) -> AsyncIterator[ConfigMaps]:
    """By KUBECONFIG or ~/.kube/config, else as the pod that we are. Raises StoreError."""
    try:
        api = async_connection(_kubeconfig())
    except ConfigError as exc:
        raise StoreError(
            f"there is neither a usable kubeconfig nor a service account here: {exc}; mount the account's token or set KUBECONFIG"
        ) from exc
    async with api:
        yield ConfigMaps(api, namespace, ledger)
