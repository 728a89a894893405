"""A shoot client that obeys nobody: claims what it is told on its command line and prints the server's answer.

hostile_client.py SOCKET DIAL_CONFIG_JSON OFFER_JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from agent.carrier.api import DialConfig, Message, Send, TlsFiles, Up
from agent.carrier.client import CarrierClient, stop_carrier
from agent.keys import generate_private_key, public_key


async def main(socket: Path, config: DialConfig, offer: dict[str, list[str]]) -> None:
    client = await CarrierClient.start(socket, config)
    key = public_key(generate_private_key())
    enroll = {"type": "enroll", "versions": [1, 1], "public_keys": {"stream": str(key)}, "offer": offer}
    try:
        async with asyncio.timeout(10):
            async for event in client.events():
                if isinstance(event, Up):
                    client.send(Send(event.stream, json.dumps(enroll)))
                elif isinstance(event, Message):
                    print(event.text, flush=True)
                    return
    finally:
        await client.detach()
        await stop_carrier(socket)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    given["tls"] = TlsFiles(**given["tls"])
    asyncio.run(main(Path(sys.argv[1]), DialConfig(**given), json.loads(sys.argv[3])))
