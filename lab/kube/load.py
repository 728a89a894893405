"""Many requests at once to a kube-apiserver, as a program of its own; a line of JSON says how it went.

    load.py KUBECONFIG webhooks COUNT CONCURRENCY     ConfigMaps that a webhook is asked about, not stored
    load.py KUBECONFIG execs COUNT BYTES              streams of `cat`, all open at once, each echoing BYTES of its own

The exec streams are what kubectl makes: WebSockets with the protocol v5.channel.k8s.io.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

#: The channels of v5.channel.k8s.io.
_STDIN, _STDOUT, _ERROR, _CLOSE = 0, 1, 3, 255
_PROTOCOL = "v5.channel.k8s.io"
_CHUNK_BYTES = 16 << 10


def session(kubeconfig: str) -> aiohttp.ClientSession:
    config = json.loads(Path(kubeconfig).read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    context.load_cert_chain(user["client-certificate"], user["client-key"])
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    return aiohttp.ClientSession(cluster["server"], connector=connector, timeout=aiohttp.ClientTimeout(total=120))


async def webhooks(client: aiohttp.ClientSession, count: int, concurrency: int) -> dict[str, Any]:
    path = "/api/v1/namespaces/default/configmaps?dryRun=All"
    gate = asyncio.Semaphore(concurrency)
    seconds: list[float] = []
    wrong: list[str] = []

    async def one(index: int) -> None:
        allowed = index % 2 == 0
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"storm-{index}", "labels": {"ask": "webhook"}},
            "data": {"allowed": "yes" if allowed else "no"},
        }
        async with gate:
            start = time.monotonic()
            async with client.post(path, json=body) as response:
                text = await response.text()
            seconds.append(time.monotonic() - start)
        refused = response.status >= 400 and "the webhook in the shoot says no" in text
        if (response.status != 201) if allowed else not refused:
            wrong.append(f"{response.status} {text[:300]}")

    start = time.monotonic()
    await asyncio.gather(*(one(index) for index in range(count)))
    seconds.sort()
    return {
        "count": count,
        "wrong": wrong[:5],
        "seconds": time.monotonic() - start,
        "p50_s": seconds[len(seconds) // 2],
        "p99_s": seconds[int(len(seconds) * 0.99)],
    }


async def execs(client: aiohttp.ClientSession, count: int, size: int) -> dict[str, Any]:
    path = "/api/v1/namespaces/default/pods/web/exec?command=cat&stdin=true&stdout=true"
    everyone, open_now, most = asyncio.Event(), 0, 0
    wrong: list[str] = []

    async def one(index: int) -> None:
        nonlocal open_now, most
        sent = hashlib.shake_256(f"stream {index}".encode()).digest(size)
        got = bytearray()
        status: dict[str, Any] = {}
        back = asyncio.Event()
        async with client.ws_connect(path, protocols=(_PROTOCOL,), max_msg_size=0) as socket:
            # The first byte back proves that `cat` runs; then wait for all the others.
            await socket.send_bytes(bytes([_STDIN]) + sent[:1])
            while not got:
                got += _payload(await socket.receive(), _STDOUT)
            open_now += 1
            most = max(most, open_now)
            if open_now == count:
                everyone.set()
            await everyone.wait()

            async def speak() -> None:
                for at in range(1, size, _CHUNK_BYTES):
                    await socket.send_bytes(bytes([_STDIN]) + sent[at : at + _CHUNK_BYTES])
                # What is said just before the end gets lost within Kubernetes now and then (kubernetes/kubernetes issue 60140).
                await back.wait()
                await socket.send_bytes(bytes([_CLOSE, _STDIN]))

            speaking = asyncio.ensure_future(speak())
            async for message in socket:
                got += _payload(message, _STDOUT)
                if len(got) >= size:
                    back.set()
                if error := _payload(message, _ERROR):
                    status = json.loads(error)
            await speaking
            open_now -= 1
        if bytes(got) != sent or status.get("status") != "Success":
            wrong.append(f"stream {index}: {len(got)} of {size} bytes came back, {status}")

    start = time.monotonic()
    ended = await asyncio.gather(*(asyncio.wait_for(one(index), 100) for index in range(count)), return_exceptions=True)
    wrong += [repr(end) for end in ended if isinstance(end, BaseException)]
    return {"count": count, "most_open": most, "wrong": wrong[:5], "seconds": time.monotonic() - start}


def _payload(message: aiohttp.WSMessage, channel: int) -> bytes:
    """What a message carries on one channel. Raises ConnectionError when the stream ended instead."""
    if message.type is not aiohttp.WSMsgType.BINARY:
        raise ConnectionError(f"the stream ended: {message}")
    data: bytes = message.data
    return data[1:] if data[0] == channel else b""


async def main(kubeconfig: str, what: str, *numbers: str) -> None:
    async with session(kubeconfig) as client:
        report = await {"webhooks": webhooks, "execs": execs}[what](client, *map(int, numbers))
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
