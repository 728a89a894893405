"""A stand-in for the part of kube-apiserver that a ledger in ConfigMaps needs, in this process, and as strict.

Objects are changed by resourceVersion only (409), made once (409), listed by label in pages of one moment (`continue`, 410 when it is
too old), as metadata alone when the Accept header says so, and watched. `faults` makes it misbehave as the real one can: answer 429, answer
nothing although the write was done, answer nothing because it was not.
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aiohttp import web

#: etcd's limit, as kube-apiserver passes it on.
OBJECT_BYTES_MAX = 1_048_576


class Fault(Enum):
    """What may go wrong with one request."""

    NONE = "none"
    BUSY = "429, nothing done"
    LOST_REQUEST = "connection closed, nothing done"
    LOST_ANSWER = "done, and the connection closed"
    INTERNAL = "500, nothing done"


@dataclass
class ApiServer:
    """`faults` is asked before each request, by method and path. `requests` are counted by method."""

    faults: Callable[[str, str], Fault] = lambda _method, _path: Fault.NONE
    delay_s: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    _objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _version: int = 1000
    _moments: dict[str, tuple[list[dict[str, Any]], int]] = field(default_factory=dict)
    _changes: asyncio.Condition = field(default_factory=asyncio.Condition)
    _history: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    _runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> str:
        """Its URL. A second `start` after `stop` is a restart: the objects are still there."""
        app = web.Application(client_max_size=4 * OBJECT_BYTES_MAX)
        path = "/api/v1/namespaces/{namespace}/configmaps"
        app.add_routes(
            [
                web.get(path, self._guarded(self._list)),
                web.post(path, self._guarded(self._create)),
                web.get(path + "/{name}", self._guarded(self._get)),
                web.put(path + "/{name}", self._guarded(self._replace)),
                web.delete(path + "/{name}", self._guarded(self._delete)),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _guarded(self, handler: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.requests[request.method] = self.requests.get(request.method, 0) + 1
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            fault = self.faults(request.method, request.path)
            if fault is Fault.BUSY:
                return _status(429, "the server has received too many requests", {"Retry-After": "0"})
            if fault is Fault.INTERNAL:
                return _status(500, "etcdserver: leader changed")
            if fault is not Fault.LOST_REQUEST:
                answer: web.StreamResponse = await handler(request)
                if fault is Fault.NONE:
                    return answer
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

        return handle

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self._watch(request)
        if (token := request.query.get("continue")) is not None:
            if token not in self._moments:
                return _status(410, "the provided continue parameter is too old")
            items, version = self._moments.pop(token)
        else:
            items = [copy.deepcopy(item) for item in self._objects.values() if self._selected(request, item)]
            version = self._version
        limit = int(request.query.get("limit", "0")) or len(items)
        page, rest = items[:limit], items[limit:]
        meta = {"resourceVersion": str(version)}
        if rest:
            meta["continue"] = uuid.uuid4().hex
            self._moments[meta["continue"]] = (rest, version)
        kind = "PartialObjectMetadataList" if _metadata_only(request) else "ConfigMapList"
        shown = [_shown(request, item) for item in page]
        return web.json_response({"kind": kind, "metadata": meta, "items": shown})

    def _selected(self, request: web.Request, item: dict[str, Any]) -> bool:
        wanted = [pair.split("=", 1) for pair in request.query.get("labelSelector", "").split(",") if pair]
        here = item["metadata"]["namespace"] == request.match_info["namespace"]
        return here and all(item["metadata"].get("labels", {}).get(key) == value for key, value in wanted)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        seen = int(request.query["resourceVersion"])
        with suppress(ConnectionError):
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "300"))):
                while True:
                    for version, kind, item in list(self._history):
                        if version > seen and self._selected(request, item):
                            event = {"type": kind, "object": _shown(request, item)}
                            await response.write(json.dumps(event).encode() + b"\n")
                        seen = max(seen, version)
                    async with self._changes:
                        await self._changes.wait()
        return response

    async def _get(self, request: web.Request) -> web.StreamResponse:
        item = self._objects.get(_key(request))
        return web.json_response(item) if item is not None else _status(404, f"{_key(request)[1]} not found")

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        key = (request.match_info["namespace"], body["metadata"]["name"])
        if key in self._objects:
            return _status(409, f'configmaps "{key[1]}" already exists')
        body["metadata"] |= {"uid": str(uuid.uuid4())}
        return await self._store("ADDED", key, body, 201)

    async def _replace(self, request: web.Request) -> web.StreamResponse:
        body, key = await request.json(), _key(request)
        known = self._objects.get(key)
        if known is None:
            return _status(404, f'configmaps "{key[1]}" not found')
        meta = body["metadata"]
        if meta.get("uid", known["metadata"]["uid"]) != known["metadata"]["uid"]:
            return _status(409, "the UID in the precondition does not match")
        if meta.get("resourceVersion", known["metadata"]["resourceVersion"]) != known["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified; please apply your changes to the latest version")
        if body.get("data") == known.get("data"):
            return web.json_response(known)  # no change, no new version
        meta["uid"] = known["metadata"]["uid"]
        return await self._store("MODIFIED", key, body, 200)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        item = self._objects.pop(_key(request), None)
        if item is None:
            return _status(404, "not found")
        self._version += 1
        await self._tell("DELETED", item)
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _store(self, kind: str, key: tuple[str, str], body: dict[str, Any], status: int) -> web.Response:
        if len(json.dumps(body.get("data"))) > OBJECT_BYTES_MAX:
            return _status(422, "ConfigMap is invalid: []: Too long: must have at most 1048576 bytes")
        self._version += 1
        body["metadata"] |= {"namespace": key[0], "resourceVersion": str(self._version)}
        self._objects[key] = body
        await self._tell(kind, body)
        return web.json_response(body, status=status)

    async def _tell(self, kind: str, item: dict[str, Any]) -> None:
        self._history = [*self._history[-200:], (self._version, kind, copy.deepcopy(item))]
        async with self._changes:
            self._changes.notify_all()


def _key(request: web.Request) -> tuple[str, str]:
    return request.match_info["namespace"], request.match_info["name"]


def _metadata_only(request: web.Request) -> bool:
    return "as=PartialObjectMetadata" in request.headers.get("Accept", "")


def _shown(request: web.Request, item: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": item["metadata"]} if _metadata_only(request) else item


def _status(code: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code, headers=headers)
