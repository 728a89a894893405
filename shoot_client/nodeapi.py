"""Follows this node's own Node object in the shoot's API server. With agent.kubeaccess, which it loads late.

The library is synchronous, so it runs in a thread of its own; what it finds is handed to the event loop. While the API server
is away or refuses, what was known stays, one line in the log says why, and it is asked again, ever more slowly. It takes
`get` and `watch` on the one Node, nothing else:

    rules: [{apiGroups: [""], resources: ["nodes"], resourceNames: ["NODE"], verbs: ["get", "watch"]}]
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agent.backoff import Backoff
from agent.errors import ConfigError, RemoteError, Retry, Unsupported
from agent.run import spawn
from shoot_client.nodeobject import NodeFacts, read

log = logging.getLogger("rhizome.shoot.node")

CONNECT_TIMEOUT_S = 5.0
#: The server ends a watch after so long; a connection that is silent for longer is dead.
WATCH_S = 300
SILENCE_MAX_S = WATCH_S + 30
OBJECT_MAX_BYTES = 4 << 20  # etcd takes 1.5 MiB
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 60.0

_WORDS = {
    401: "it does not accept our token or certificate",
    403: "this is not allowed: grant `get` and `watch` on this Node to our service account",
    404: "it knows no such Node: is `node_name` the node's name in Kubernetes?",
}


class NodeApiError(RemoteError):
    """The API server refused, or was not to be had. `retry` NOW: our place in the history of changes is gone, begin anew."""

    def __init__(self, message: str, retry: Retry = Retry.BACKOFF) -> None:
        super().__init__(message)
        self.retry = retry


class NodeApi:
    """The API server, as far as one Node is concerned. Every method may wait, and is called in a thread."""

    def __init__(self, name: str, kubeconfig: Path | None) -> None:
        """Raises Unsupported without the library, ConfigError without usable credentials."""
        self.name = name
        try:
            from agent.kubeaccess import TROUBLE, connection
        except ImportError as exc:
            raise Unsupported(
                "node_object needs the Python package lightkube: pip install 'rhizome[kubernetes]'"
            ) from exc
        try:
            self._api = connection(kubeconfig)
        except ConfigError as exc:
            where = f"kubeconfig {kubeconfig}" if kubeconfig is not None else "the service account of this pod"
            raise ConfigError(f"node_object: {where}: {exc}") from exc
        self._trouble = TROUBLE
        self._watching: Any = None
        self._interrupted = False

    def get(self) -> dict[str, Any]:
        """The object as it is. Raises NodeApiError."""
        try:
            with closing(self._ask(f"/api/v1/nodes/{quote(self.name)}", {}, CONNECT_TIMEOUT_S)) as response:
                return _object(_whole(response))
        except self._trouble as exc:
            raise NodeApiError(f"the API server cannot be reached: {_cause(exc)}") from exc

    def watch(self, version: str) -> Iterator[dict[str, Any]]:
        """The object after each change since `version`, until the server ends the watch. Raises NodeApiError."""
        query = {
            "fieldSelector": f"metadata.name={self.name}",
            "resourceVersion": version,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        try:
            with closing(self._ask("/api/v1/nodes", query, SILENCE_MAX_S)) as response:
                self._watching = response
                for line in _lines(response) if not self._interrupted else ():
                    event = _object(line)
                    item = event.get("object")
                    item = item if isinstance(item, dict) else {}
                    if event.get("type") == "ERROR":
                        raise self._refused(item.get("code"))
                    if event.get("type") in ("ADDED", "MODIFIED"):
                        yield item
        except self._trouble as exc:
            raise NodeApiError(f"the watch broke off: {_cause(exc)}") from exc
        finally:
            self._watching = None

    def interrupt(self) -> None:
        """End a watch that waits in another thread, and any that is to come."""
        self._interrupted = True
        if (response := self._watching) is not None:
            # Below TLS and by a handle of our own: it wakes the reader, who then closes what is his.
            with suppress(OSError), socket.socket(fileno=os.dup(_fileno(response))) as handle:
                handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Its connections; nothing can be asked afterwards."""
        self._api.close()

    def _ask(self, path: str, query: dict[str, str], silence_max_s: float) -> Any:
        # Nothing packed: a few bytes of a hostile server could unpack to more than the memory.
        limits = {
            "connect": CONNECT_TIMEOUT_S,
            "write": CONNECT_TIMEOUT_S,
            "pool": CONNECT_TIMEOUT_S,
            "read": silence_max_s,
        }
        request = self._api.build_request(
            "GET", path, params=query, headers={"Accept-Encoding": "identity"}, extensions={"timeout": limits}
        )
        response = self._api.send(request, stream=True)
        if response.status_code != 200:
            response.close()
            raise self._refused(response.status_code)
        return response

    def _refused(self, status: Any) -> NodeApiError:
        if status == 410:
            return NodeApiError("the watch is too old", Retry.NOW)
        words = _WORDS.get(status, f"it answers {status}")
        return NodeApiError(f"the API server refuses Node {self.name!r}: {words}")


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _whole(response: Any) -> bytes:
    data = b""
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > OBJECT_MAX_BYTES:
            raise ValueError("an object that is too long")
    return data


def _lines(response: Any) -> Iterator[bytes]:
    pending = b""
    for chunk in response.iter_raw():
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > OBJECT_MAX_BYTES:
            raise ValueError("a line without an end")
        yield from (line for line in lines if line.strip())


def _fileno(response: Any) -> int:
    return int(response.extensions["network_stream"].get_extra_info("socket").fileno())


def _cause(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


class NodeFollower:
    """Tells `on_facts`, in the event loop, what the object says: once it is known and after each change that matters."""

    def __init__(self, api: NodeApi, on_facts: Callable[[NodeFacts], None]) -> None:
        self._api = api
        self._on_facts = on_facts
        self._told: NodeFacts | None = None
        self._trouble = ""
        self._stopping = threading.Event()

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def work() -> None:
            outcome: BaseException | None = None
            try:
                self._follow(loop)
            except BaseException as exc:
                outcome = exc
            finally:
                self._api.close()
            with suppress(RuntimeError):  # the loop has ended, and with it whoever wants to know
                loop.call_soon_threadsafe(_settle, ended, outcome)

        threading.Thread(target=work, name="node-object", daemon=True).start()
        try:
            await ended
        finally:
            self._stopping.set()
            self._api.interrupt()

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        backoff = Backoff(first_s=RETRY_FIRST_S, cap_s=RETRY_MAX_S)
        while not self._stopping.is_set():
            try:
                node = self._api.get()
                self._found(loop, node)
                for changed in self._api.watch(_version(node)):
                    if self._stopping.is_set():
                        return
                    self._found(loop, changed)
                backoff.reset()
                self._stopping.wait(RETRY_FIRST_S)  # the server ended the watch, as it does from time to time
            except NodeApiError as exc:
                if self._stopping.is_set():
                    return
                is_first, delay_s = not backoff.failures, backoff.next()
                if exc.retry is Retry.NOW and is_first:
                    continue
                self._complain(str(exc), delay_s)
                self._stopping.wait(delay_s)

    def _found(self, loop: asyncio.AbstractEventLoop, node: dict[str, Any]) -> None:
        if self._trouble:
            log.info("the Node object can be read again", extra={"event": "node.read"})
            self._trouble = ""
        facts = read(node)
        if facts == self._told:
            return
        for words in facts.left_out:
            log.warning("of the Node object is not used: %s", words, extra={"event": "node.left_out"})
        self._told = facts
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._on_facts, facts)

    def _complain(self, words: str, delay_s: float) -> None:
        if words != self._trouble:
            kept = "what is known of this node stays" if self._told else "nothing is known of this node yet"
            log.warning("%s; %s (again in %.0f s)", words, kept, delay_s, extra={"event": "node.unreadable"})
            self._trouble = words


def _settle(future: asyncio.Future[None], outcome: BaseException | None) -> None:
    if future.done():
        return
    if outcome is None:
        future.set_result(None)
    else:
        future.set_exception(outcome)


def _version(node: dict[str, Any]) -> str:
    metadata = node.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return version if isinstance(version, str) else "0"


def follow(name: str, kubeconfig: Path | None, on_facts: Callable[[NodeFacts], None]) -> asyncio.Task[None]:
    """Start following. Raises Unsupported or ConfigError at once for what cannot work."""
    return spawn(NodeFollower(NodeApi(name, kubeconfig), on_facts).run(), name="shoot.node")
