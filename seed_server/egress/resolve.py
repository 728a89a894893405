"""Names of the shoot, asked of its own DNS through the tunnel. Every answer is a stranger's: the policy judges each address.

Nothing is cached: a name is asked again for each dial, so a changed answer counts from the next one on. dnspython is loaded
with the first name.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from agent.model import IPAddress
from agent.run import spawn
from seed_server.egress.dial import Dialler, keep_in_tunnel
from seed_server.egress.policy import Way
from seed_server.egress.verdict import Denied, Failure, Stage, tunnel_down

if TYPE_CHECKING:
    from dns.message import Message

PORT = 53
#: A question is asked again of the next server after this; the request's own time ends it all.
RETRY_S = 1.0
RESOLUTION_DELAY_S = 0.05  # RFC 8305 section 3
ANSWER_MAX_BYTES = 4096
#: Of one name, each is dialled at most once.
ADDRESSES_MAX = 8
QUESTIONS_MAX = 256


class Resolver:
    """Asks these servers, in order and then again. `devices`: what the questions leave by, none for the routes' choice."""

    def __init__(self, servers: Sequence[IPAddress], devices: tuple[str, ...], dialler: Dialler) -> None:
        self._servers = tuple(servers)
        self._devices = devices
        self._dialler = dialler
        self._asking = 0

    async def addresses(self, name: str, until: float) -> list[IPAddress]:
        """A and AAAA of a name, both families in turn. Raises Denied when there are none by `until`, a time of the loop."""
        if not self._servers:
            words = f"{name} is a name, and no DNS of the shoot is configured: give its address"
            raise Denied(Failure(502, Stage.RESOLVE, "names-off", words))
        faults = [self._dialler.fault(server) for server in self._servers]
        if all(faults):
            raise Denied(tunnel_down(faults[0]))
        if self._asking >= QUESTIONS_MAX:
            raise Denied(Failure(503, Stage.RESOLVE, "capacity", f"{QUESTIONS_MAX} names are being looked up"))
        self._asking += 1
        tasks = [spawn(self._ask(name, kind, until), name=f"resolve {kind}") for kind in ("A", "AAAA")]
        try:
            await _enough(tasks)
            answers = [task.result() for task in tasks if task.done()]
        finally:
            self._asking -= 1
            for task in tasks:
                task.cancel()
        found: list[list[IPAddress]] = []
        failures: list[Failure] = []
        for answer in answers:
            if isinstance(answer, Failure):
                failures.append(answer)
            else:
                found.append(answer)
        mixed = [address for pair in _zip(found) for address in pair][:ADDRESSES_MAX]
        if mixed:
            return mixed
        if failures:
            raise Denied(failures[0])
        raise Denied(Failure(502, Stage.RESOLVE, "no-such-name", f"the shoot's DNS has no address for {name}"))

    async def _ask(self, name: str, kind: str, until: float) -> list[IPAddress] | Failure:
        """Failures are results: one family's is no reason to give up on the other's."""
        loop = asyncio.get_running_loop()
        turn = 0
        failure = Failure(504, Stage.RESOLVE, "dns-timeout", f"the shoot's DNS did not answer for {name}")
        while loop.time() < until:
            server = self._servers[turn % len(self._servers)]
            turn += 1
            began = loop.time()
            try:
                async with asyncio.timeout_at(min(until, began + RETRY_S)):
                    return await self._query(server, name, kind, until)
            except Denied as exc:
                failure = exc.failure
                if failure.stage is not Stage.RESOLVE or failure.result == "no-such-name":
                    return failure
            except TimeoutError:
                continue
            except OSError as exc:
                words = f"the shoot's DNS {server} cannot be asked: {os.strerror(exc.errno or 0)}"
                failure = Failure(502, Stage.RESOLVE, "dns-unreachable", words)
            # Another server may know better; the same one not at once.
            if turn >= len(self._servers):
                await asyncio.sleep(min(max(0.0, began + RETRY_S - loop.time()), max(0.0, until - loop.time())))
        return failure

    async def _query(self, server: IPAddress, name: str, kind: str, until: float) -> list[IPAddress]:
        """Raises Denied, OSError, TimeoutError."""
        import dns.flags
        import dns.message

        question = dns.message.make_query(name + ".", kind, id=secrets.randbelow(1 << 16), use_edns=0, payload=1232)
        wire = question.to_wire()
        family = socket.AF_INET6 if server.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            keep_in_tunnel(sock, self._devices)
            # Connected: only this server's answers are seen, and a closed port is an error.
            sock.connect((str(server), PORT))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, wire)
            while True:
                answer = answer_to(question, await loop.sock_recv(sock, ANSWER_MAX_BYTES))
                if answer is not None:
                    break
        if answer.flags & dns.flags.TC:
            answer = await self._over_tcp(server, question, until)
        return read(answer, name, server)

    async def _over_tcp(self, server: IPAddress, question: Message, until: float) -> Message:
        loop = asyncio.get_running_loop()
        with await self._dialler.dial(server, PORT, Way.TUNNEL, self._devices, until) as sock:
            wire = question.to_wire()
            await loop.sock_sendall(sock, len(wire).to_bytes(2, "big") + wire)
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                more = await loop.sock_recv(sock, 65537)
                if not more:
                    raise ConnectionResetError("the DNS server hung up")
                data += more
        answer = answer_to(question, data[2:])
        if answer is None:
            raise ConnectionResetError("what the DNS server said is no answer to the question")
        return answer


def answer_to(question: Message, wire: bytes) -> Message | None:
    """What a name server sent, None when it is no answer to this question."""
    import dns.exception
    import dns.message

    try:
        answer = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None
    return answer if question.is_response(answer) else None


async def _enough(tasks: Sequence[asyncio.Task[list[IPAddress] | Failure]]) -> None:
    """Wait for all, but not for long once one of them has addresses: some servers never answer for the other family."""
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if waiting:
        is_found = any(isinstance(answer, list) and answer for answer in (task.result() for task in done))
        await asyncio.wait(waiting, timeout=RESOLUTION_DELAY_S if is_found else None)


def read(answer: Message, name: str, server: IPAddress) -> list[IPAddress]:
    """The addresses in an answer, aliases followed; empty: the name has none of this kind. Raises Denied."""
    import dns.exception
    import dns.message
    import dns.rcode

    code = answer.rcode()
    if code == dns.rcode.NXDOMAIN:
        raise Denied(Failure(502, Stage.RESOLVE, "no-such-name", f"the shoot's DNS knows no {name}"))
    if code != dns.rcode.NOERROR:
        words = f"the shoot's DNS {server} answered {dns.rcode.to_text(code)} for {name}"
        raise Denied(Failure(502, Stage.RESOLVE, "dns-error", words))
    useless = Failure(502, Stage.RESOLVE, "dns-error", f"the shoot's DNS {server} gave a useless answer for {name}")
    if not isinstance(answer, dns.message.QueryMessage):
        raise Denied(useless)
    try:
        records = answer.resolve_chaining().answer
    except dns.exception.DNSException as exc:
        raise Denied(useless) from exc
    return [ip_address(str(record.address)) for record in records or ()][:ADDRESSES_MAX]


def _zip(lists: list[list[IPAddress]]) -> list[list[IPAddress]]:
    longest = max(map(len, lists), default=0)
    return [[found[index] for found in lists if index < len(found)] for index in range(longest)]
