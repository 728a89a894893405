"""Follows this node's own Node object in the shoot's API server. The only module of the client that loads `kubernetes`.

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
from collections.abc import Callable, Iterable, Iterator
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
    """The API server, as far as one Node is concerned. Every method may wait, and is called in a thread.

    Of the library only credentials and connections are used: its models of all Kubernetes objects would take 20 MiB.
    """

    def __init__(self, name: str, kubeconfig: Path | None) -> None:
        """Raises Unsupported without the library, ConfigError without usable credentials."""
        self.name = name
        try:
            from kubernetes import client, config
            from urllib3.exceptions import HTTPError
        except ImportError as exc:
            raise Unsupported(
                "node_object needs the Python package kubernetes: pip install 'rhizome[kubernetes]'"
            ) from exc
        self._configuration = client.Configuration()
        try:
            if kubeconfig is not None:
                config.load_kube_config(str(kubeconfig), client_configuration=self._configuration, persist_config=False)  # type: ignore[no-untyped-call]
            else:
                config.load_incluster_config(client_configuration=self._configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError, ValueError) as exc:
            where = f"kubeconfig {kubeconfig}" if kubeconfig is not None else "the service account of this pod"
            raise ConfigError(f"node_object: {where}: {exc}") from exc
        self._trouble = (HTTPError, OSError, ValueError)
        self._connections = client.ApiClient(self._configuration).rest_client.pool_manager
        self._watching: Any = None
        self._interrupted = False

    def get(self) -> dict[str, Any]:
        """The object as it is. Raises NodeApiError."""
        try:
            with closing(self._ask(f"/api/v1/nodes/{quote(self.name)}", {}, CONNECT_TIMEOUT_S)) as response:
                return _object(response.read(OBJECT_MAX_BYTES))
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
            with suppress(OSError), socket.socket(fileno=os.dup(response.fileno())) as handle:
                handle.shutdown(socket.SHUT_RDWR)

    def _ask(self, path: str, query: dict[str, str], silence_max_s: float) -> Any:
        from urllib3 import Timeout

        logins: Iterable[Any] = self._configuration.auth_settings().values()  # renews a service account's token
        response = self._connections.request(
            "GET",
            self._configuration.host + path,
            fields=query,
            headers={login["key"]: login["value"] for login in logins if login["in"] == "header"},
            preload_content=False,
            retries=False,
            timeout=Timeout(connect=CONNECT_TIMEOUT_S, read=silence_max_s),
        )
        if response.status != 200:
            response.close()
            raise self._refused(response.status)
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


def _lines(response: Any) -> Iterator[bytes]:
    pending = b""
    for chunk in response.stream(amt=None, decode_content=True):
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > OBJECT_MAX_BYTES:
            raise ValueError("a line without an end")
        yield from (line for line in lines if line.strip())


def _cause(exc: BaseException) -> str:
    """The innermost of urllib3's nested errors, which says what really happened."""
    reason = getattr(exc, "reason", None)
    while isinstance(reason, BaseException) and getattr(reason, "reason", None) not in (None, reason):
        reason = reason.reason  # type: ignore[attr-defined]
    return str(reason or exc) or type(exc).__name__


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
