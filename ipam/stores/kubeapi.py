"""The border to the Kubernetes API: ConfigMaps of one ledger, by the asyncio client of the `kubernetes` library.

Its models and retries are not used: a list answers with metadata alone where that is enough, and a write is sent once by us. (The
HTTP library below may send it twice when a connection breaks; so a 409 never proves that nothing was written.)
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

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.config import ConfigException

from agent.errors import Conflict, Retry, StoreError

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

    def __init__(self, api: client.ApiClient, namespace: str, ledger: str) -> None:
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
            if answer.status != 410:
                self._check(answer.status, await self._peek(answer), "WATCH", self._path)
                await answer.response.content.readline()

    async def _peek(self, answer: Any) -> bytes:
        return b"" if answer.status == 200 else await answer.read()

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
                content = await answer.read()
                if answer.status != 429 or attempt == BUSY_TRIES - 1:
                    self._check(answer.status, content, method, path)
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
    ) -> AsyncIterator[Any]:
        """Raises StoreError; what was sent may have happened."""
        try:
            made = await self._api.param_serialize(
                method, path, {}, dict(query or {}), {"Accept": accept}, body, auth_settings=["BearerToken"]
            )
            answer = await self._api.call_api(*made, _request_timeout=timeout_s)
            try:
                yield answer
            finally:
                answer.response.close() if "watch" in (query or {}) else answer.response.release()
        except TimeoutError as exc:
            raise StoreError(
                f"the Kubernetes API did not answer {method} {path} within {timeout_s:.0f} s; is it up, and may we reach it (NetworkPolicy)?"
            ) from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
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


def _kubeconfig_is_there() -> bool:
    """The library warns of a missing one, even where a pod's own account is meant."""
    names = os.environ.get("KUBECONFIG") or "~/.kube/config"
    return any(name and Path(name).expanduser().exists() for name in names.split(os.pathsep))


@asynccontextmanager
async def connected(namespace: str, ledger: str) -> AsyncIterator[ConfigMaps]:
    """By KUBECONFIG or ~/.kube/config, else as the pod that we are. Raises StoreError."""
    settings = client.Configuration()
    try:
        if _kubeconfig_is_there():
            await config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError) as exc:
        raise StoreError(
            f"there is neither a usable kubeconfig nor a service account here: {exc}; mount the account's token or set KUBECONFIG"
        ) from exc
    settings.retries = None
    async with client.ApiClient(settings) as api:
        yield ConfigMaps(api, namespace, ledger)
