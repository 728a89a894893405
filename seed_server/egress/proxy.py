"""One CONNECT from its head to its tunnel: target, policy, name, dial, one line of answer, pump.

head -> target 400 -> ranges 403 -> name 502, 504 -> carried? 503 -> dial 502, 504 -> 200 alone -> bytes
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from ipaddress import ip_address, ip_network

from agent.carrier import connect
from agent.carrier.tls import readable, writable
from agent.carrier.upgrade import Request
from agent.errors import HostError
from agent.model import IPAddress, IPNetwork, networks
from agent.run import spawn
from seed_server.egress import target as targets
from seed_server.egress.api import EgressConfig
from seed_server.egress.dial import Dialler
from seed_server.egress.ends import Plain
from seed_server.egress.lost import end_lost
from seed_server.egress.policy import Policy, Way
from seed_server.egress.pump import Pump, Tunnel
from seed_server.egress.reach import Reach
from seed_server.egress.resolve import ADDRESSES_MAX, Resolver
from seed_server.egress.tally import Tally
from seed_server.egress.target import Target
from seed_server.egress.verdict import (
    ESTABLISHED,
    Denied,
    Failure,
    Stage,
    at_capacity,
    bad_request,
    forbidden,
    not_connect,
    reply,
)

log = logging.getLogger("rhizome.egress")

#: A refusal is followed by reading what the client still sends, or a reset would overtake the words.
LINGER_S, LINGER_BYTES = 1.0, 64 * 1024
_WATCH_S = 1.0


class Proxy:
    """What a configuration says, and what is open under it. A new configuration leaves open tunnels alone."""

    def __init__(self, config: EgressConfig) -> None:
        """Raises ValueError for networks that are none."""
        self.reach = Reach()
        self.tally = Tally()
        self.pump = Pump()
        self.dialler = Dialler(lambda address: self.reach.fault(address, asyncio.get_running_loop().time()))
        self.idle = asyncio.Event()
        self.idle.set()
        self._open = 0
        self.reconfigure(config)
        self._watching = spawn(self._watch(), name="egress.watch", vital=True)

    def reconfigure(self, config: EgressConfig) -> None:
        """Raises ValueError; then nothing has changed."""
        policy = policy_of(config)
        resolver = Resolver([ip_address(text) for text in config.dns], config.devices, self.dialler)
        self.config, self.policy, self._resolver = config, policy, resolver

    @property
    def open(self) -> int:
        """Tunnels and dials."""
        return self._open

    async def serve(self, client: Plain, request: Request) -> None:
        """Answer a complete head. `client` is this method's to close, also when it is cancelled."""
        if self._open >= self.config.max_connections:
            await self.refuse(client, at_capacity(self.config.max_connections))
            return
        self._open += 1
        self.idle.clear()
        is_tunnel = False
        try:
            began = asyncio.get_running_loop().time()
            try:
                sock = await self._dial(request, began + self.config.dial_timeout_s)
            except Denied as exc:
                await self.refuse(client, exc.failure, request.target)
                return
            try:
                address = self._in_shoot(sock)
                await _send(client, ESTABLISHED)
            except BaseException:
                sock.close()
                raise
            self.tally.succeeded(asyncio.get_running_loop().time() - began)
            self.pump.add(Tunnel(client, Plain(sock), request.rest, self._on_closed, address))
            is_tunnel = True
        except OSError as exc:
            log.debug("a client left: %s", exc, extra={"event": "egress.left"})
        finally:
            if not is_tunnel:
                self._on_closed()
                client.close()

    async def refuse(self, client: Plain, failure: Failure, target: str = "") -> None:
        """Answer with the cause and end. `client` is closed afterwards."""
        self.tally.failed(failure, target[: targets.AUTHORITY_MAX])
        log.log(
            logging.INFO if self.tally.is_news(failure, asyncio.get_running_loop().time()) else logging.DEBUG,
            "%s: %d %s",
            ascii(target[: targets.AUTHORITY_MAX])[1:-1] or "a client",
            failure.status,
            failure.words,
            extra={"event": "egress.refused", "stage": failure.stage.value, "reason": failure.result},
        )
        try:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(LINGER_S):
                    await _send(client, reply(failure))
                    client.end()
                    left = LINGER_BYTES
                    while left > 0:
                        data = client.read()
                        if data is None:
                            await readable(client.sock)
                        elif not data:
                            return
                        else:
                            left -= len(data)
        finally:
            client.close()

    def close(self) -> None:
        """End every tunnel."""
        self._watching.cancel()
        self.pump.close()

    def _in_shoot(self, sock: socket.socket) -> IPAddress | None:
        """Where a target is, if it is in the shoot. One that has hung up already is nowhere."""
        try:
            address = ip_address(sock.getpeername()[0].partition("%")[0])
        except OSError:
            return None
        return address if self.policy.judge(address) is Way.TUNNEL else None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if ended := end_lost(self.pump, self.dialler.fault, asyncio.get_running_loop().time()):
                log.info("%d connections ended, their targets are out of reach", ended, extra={"event": "egress.lost"})

    def _on_closed(self) -> None:
        self._open -= 1
        if not self._open:
            self.idle.set()

    async def _dial(self, request: Request, until: float) -> socket.socket:
        """Raises Denied."""
        target = _target(request)
        host = target.host
        if isinstance(host, str):
            addresses = await self._resolve(host, until)
        else:
            verdict = self.policy.judge(host)
            if isinstance(verdict, Failure):
                raise Denied(verdict)
            addresses = [(host, verdict)]
        return await self.dialler.first(addresses, target.port, self.config.devices, until)

    async def _resolve(self, name: str, until: float) -> list[tuple[IPAddress, Way]]:
        """What of a name's addresses may be dialled; the address that was judged is the one that is dialled."""
        if name == "localhost" or name.endswith(".localhost"):
            raise Denied(forbidden("loopback", f"{name} is this host, which is never dialled"))
        is_direct = self.policy.is_direct(name)
        found = await _in_the_seed(name, until) if is_direct else await self._resolver.addresses(name, until)
        failure: Failure | None = None
        allowed: list[tuple[IPAddress, Way]] = []
        for address in found:
            verdict = self.policy.judge_direct(address) if is_direct else self.policy.judge(address)
            if not isinstance(verdict, Failure):
                allowed.append((address, verdict))
            elif failure is None:
                failure = verdict
        if not allowed:
            assert failure is not None
            raise Denied(Failure(failure.status, failure.stage, failure.result, f"{name}: {failure.words}"))
        return allowed


async def _in_the_seed(name: str, until: float) -> list[IPAddress]:
    try:
        async with asyncio.timeout_at(until):
            found = await connect.lookup(name, 0)
    except TimeoutError as exc:
        raise Denied(Failure(504, Stage.RESOLVE, "dns-timeout", f"the seed's DNS did not answer for {name}")) from exc
    except HostError as exc:
        raise Denied(Failure(502, Stage.RESOLVE, "no-such-name", f"in the seed: {exc}")) from exc
    return [ip_address(address.sockaddr[0].partition("%")[0]) for address in found][:ADDRESSES_MAX]


def _target(request: Request) -> Target:
    """Raises Denied for what is no CONNECT to a target."""
    if request.http_version not in ("1.0", "1.1"):
        raise Denied(bad_request("a request of HTTP/1.1 is wanted"))
    if request.method != "CONNECT":
        raise Denied(not_connect(request.method))
    if any(name in ("content-length", "transfer-encoding") for name, _ in request.headers):
        # What is the body, and what the tunnel's? Two readers would not agree.
        raise Denied(bad_request("a CONNECT has no content (RFC 9110 section 9.3.6)"))
    try:
        return targets.parse(request.target)
    except ValueError as exc:
        raise Denied(bad_request(str(exc))) from exc


def policy_of(config: EgressConfig) -> Policy:
    """Raises ValueError for what is no network."""
    direct: list[IPNetwork] = []
    names: list[str] = []
    for text in config.direct:
        try:
            direct.append(ip_network(text))
        except ValueError:
            names.append(text)
    return Policy(
        shoot=networks(config.shoot),
        refused=tuple((ip_network(text), words) for text, words in config.refused),
        direct=tuple(direct),
        direct_names=tuple(names),
    )


async def _send(client: Plain, data: bytes) -> None:
    """Raises OSError."""
    view = memoryview(data)
    while view or not client.flush():
        view = view[client.write(view) :]
        if view or not client.flush():
            await writable(client.sock)
            client.writable = True
