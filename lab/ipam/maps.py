"""ConfigMaps in this process: what ipam.stores.kubeapi offers, without HTTP, for millions of steps.

Each of its processes has a `Client`, which fails at a request of our choice: before it reaches the server, after it was done, or for good.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import Enum

from agent.errors import Conflict, StoreError
from ipam.stores.kubeapi import ConfigMaps, Object


class Killed(BaseException):
    """The process ends here."""


class Fault(Enum):
    """What happens to one request."""

    LOST_REQUEST = "not done, no answer"
    LOST_ANSWER = "done, no answer"
    TWICE = "done, and sent a second time by the HTTP library, which gets the 409"
    KILLED_BEFORE = "the process dies before it"
    KILLED_AFTER = "the process dies after it"


class Server:
    """The objects, and one version for all of them, as etcd has it."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.versions: Iterator[int] = itertools.count(1)
        self.version = 0

    def put(self, name: str, uid: str, text: str) -> Object:
        self.version = next(self.versions)
        self.objects[name] = Object(name, uid, str(self.version), text)
        return self.objects[name]


class Client(ConfigMaps):
    """One process's way to the server. `fault` happens at the `fault_at`-th write from now, 0 being the next."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.fault_at = -1
        self.fault = Fault.LOST_REQUEST

    async def everything(self, *, whole: bool) -> tuple[list[Object], str]:
        found = self.server.objects.values()
        shown = [o if whole else Object(o.name, o.uid, o.version, None) for o in found]
        return shown, str(self.server.version)

    async def get(self, name: str) -> Object:
        if name not in self.server.objects:
            raise StoreError(f"{name} not found")
        return self.server.objects[name]

    async def create(self, name: str, text: str) -> Object:
        return self._write(name, None, text)

    async def replace(self, known: Object, text: str) -> Object:
        return self._write(known.name, known, text)

    def _write(self, name: str, known: Object | None, text: str) -> Object:
        self.fault_at -= 1
        now = self.fault_at == -1
        if now and self.fault is Fault.KILLED_BEFORE:
            raise Killed
        if now and self.fault is Fault.LOST_REQUEST:
            raise StoreError("no answer")
        there = self.server.objects.get(name)
        if (there is None) != (known is None) or (there and known and there.version != known.version):
            raise Conflict("it was changed")
        written = self.server.put(name, there.uid if there else f"uid-{name}", text)
        if now and self.fault is Fault.KILLED_AFTER:
            raise Killed
        if now and self.fault is Fault.LOST_ANSWER:
            raise StoreError("no answer")
        if now and self.fault is Fault.TWICE:
            raise Conflict("it was changed (by ourselves)")
        return written
