"""A carrier on loopback without any device: certificates, stand-ins for WireGuard at both ends, and a record of its events.

For tests and benchmarks of the carrier alone. Nothing here needs root or a network namespace.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.carrier.api import DialConfig, Event, ListenConfig, Proxy, TlsFiles
from agent.carrier.client import CarrierClient
from agent.carrier.downlink import Downlink
from agent.carrier.streams import Streams
from agent.carrier.uplink import Uplink
from agent.identity import Identity, Role
from agent.pki import issue, make_ca
from agent.run import spawn
from lab.processes import LabError

E = TypeVar("E", bound=Event)

SERVER_NAME = "seed.test"
CONTROL_PLANE = "shoot--a"
#: A datagram of the size that a WireGuard device with an MTU of 1420 makes.
FULL_BYTES = 1452


class Pki:
    """A CA of one control plane, and what it issued."""

    def __init__(self, directory: Path, control_plane: str = CONTROL_PLANE) -> None:
        self.directory = directory
        self.control_plane = control_plane
        make_ca(directory, control_plane)

    def server(self, *names: str, now: dt.datetime | None = None) -> TlsFiles:
        """For `names` (SERVER_NAME when there are none) and for loopback addresses."""
        ips = (ip_address("127.0.0.1"), ip_address("::1"))
        return issue(
            self.directory, Role.SEED_SERVER, dns=names or (SERVER_NAME,), ips=ips, days=30, force=True, now=now
        ).files

    def client(self, name: str = "node-1", *, now: dt.datetime | None = None) -> TlsFiles:
        return issue(self.directory, Role.SHOOT_CLIENT, name, days=30, force=True, now=now).files

    def odd(self, *uris: str, self_signed: bool = False) -> TlsFiles:
        """A client certificate such as this product would not issue: any URI names, or signed by nobody."""
        now = dt.datetime.now(dt.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate((self.directory / "ca.crt").read_bytes())
        signer = serialization.load_pem_private_key((self.directory / "ca.key").read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(key if self_signed else signer, hashes.SHA256())
        files = TlsFiles(
            str(self.directory / "ca.crt"), str(self.directory / "odd.crt"), str(self.directory / "odd.key")
        )
        Path(files.certificate).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        Path(files.key).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def identity(self, name: str = "node-1") -> str:
        return str(Identity(self.control_plane, Role.SHOOT_CLIENT, name))

    @property
    def server_identity(self) -> str:
        return str(Identity(self.control_plane, Role.SEED_SERVER))


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody had a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def listen_config(tls: TlsFiles, wireguard_port: int, *addresses: tuple[str, int]) -> ListenConfig:
    return ListenConfig(addresses or (("127.0.0.1", free_port()),), tls, wireguard_port, CONTROL_PLANE)


def dial_config(
    tls: TlsFiles, wireguard_port: int, server: tuple[str, int], *proxies: Proxy, server_name: str = SERVER_NAME
) -> DialConfig:
    identity = str(Identity(CONTROL_PLANE, Role.SEED_SERVER))
    return DialConfig(*server, server_name, tls, wireguard_port, proxies=tuple(proxies), expected_identity=identity)


class Echo:
    """A UDP socket where the server's WireGuard would be; sends every datagram back to where it came from."""

    def __init__(self) -> None:
        self.sock = _udp_socket()
        self.port: int = self.sock.getsockname()[1]
        #: Where the last datagram came from: to WireGuard, the peer's endpoint.
        self.endpoint: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self.sock, self._on_readable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()

    def _on_readable(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data, self.endpoint = self.sock.recvfrom(65536)
                self.sock.sendto(data, self.endpoint)


class Pinger:
    """A UDP socket where the client's WireGuard would be; sends numbered datagrams and keeps count of what comes back."""

    def __init__(self) -> None:
        self.sock = _udp_socket()
        self.port: int = self.sock.getsockname()[1]
        self.sent = 0
        self.answers: set[int] = set()
        self._arrived = asyncio.Event()

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self.sock, self._on_readable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()

    def send(self, relay_port: int, size: int = 100) -> int:
        """One datagram that looks like WireGuard's data; returns its number."""
        number, self.sent = self.sent, self.sent + 1
        data = b"\x04\0\0\0" + number.to_bytes(8, "big")
        with suppress(ConnectionRefusedError):  # the fate of an earlier one
            self.sock.sendto(data + bytes(max(0, size - len(data))), ("127.0.0.1", relay_port))
        return number

    async def exchange(self, relay_port: int, size: int = 100, timeout_s: float = 5.0) -> float:
        """Seconds until a datagram came back, sent every 20 ms until one does. Raises LabError."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        first = self.sent
        while loop.time() < start + timeout_s:
            self.send(relay_port, size)
            await asyncio.sleep(0.02)
            if any(number >= first for number in self.answers):
                return loop.time() - start
        raise LabError(f"no datagram came back within {timeout_s:g} s")

    async def run(self, relay_port: Callable[[], int], seconds: float, per_s: float = 100.0) -> None:
        """Send at an even rate for a while."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for index in range(round(seconds * per_s)):
            await asyncio.sleep(max(0.0, start + index / per_s - loop.time()))
            self.send(relay_port())

    async def lost(self, wait_s: float = 1.0) -> int:
        """How many have not come back, after waiting for the last ones."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while len(self.answers) < self.sent:
                    self._arrived.clear()
                    await self._arrived.wait()
        return self.sent - len(self.answers)

    def _on_readable(self) -> None:
        with suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                data = self.sock.recv(65536)
                self.answers.add(int.from_bytes(data[4:12], "big"))
                self._arrived.set()


@dataclass(slots=True)
class Record:
    """Events as they come, and waiting for one. `publish` is what a carrier's role takes."""

    events: list[Event] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[E]) -> E:
        return self.of(kind)[-1]

    async def until(self, kind: type[E], count: int = 1, *, timeout_s: float = 5.0) -> E:
        """The `count`-th event of a kind since the beginning. Raises LabError with what came instead."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self.of(kind)) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as exc:
            raise LabError(f"no {kind.__name__} number {count} within {timeout_s:g} s, but {self.events}") from exc
        return self.of(kind)[count - 1]


class Client:
    """The client's role in this process, and a pinger where its WireGuard would be."""

    def __init__(self, config: DialConfig, pinger: Pinger) -> None:
        self.record = Record()
        self.pinger = pinger
        self.streams = Streams(self.record.publish, first=1)
        self.uplink = Uplink(config, self.streams, self.record.publish)

    @property
    def relay_port(self) -> int:
        return self.uplink.relay_port


class Server:
    """The server's role in this process."""

    def __init__(self, config: ListenConfig) -> None:
        self.record = Record()
        self.streams = Streams(self.record.publish, first=1)
        self.downlink = Downlink(config, self.streams, self.record.publish)

    @property
    def address(self) -> tuple[str, int]:
        return self.downlink.config.addresses[0]


@asynccontextmanager
async def client(
    tls: TlsFiles, server: tuple[str, int], *proxies: Proxy, server_name: str = SERVER_NAME
) -> AsyncIterator[Client]:
    """A client's role that dials `server` (an address, or what an SNI proxy listens on) as `server_name`."""
    with Pinger() as pinger:
        made = Client(dial_config(tls, pinger.port, server, *proxies, server_name=server_name), pinger)
        try:
            yield made
        finally:
            made.uplink.close()
            await _settle()


@asynccontextmanager
async def server(tls: TlsFiles, echo: Echo, *addresses: tuple[str, int], **changes: Any) -> AsyncIterator[Server]:
    """A server's role. `changes` are fields of its ListenConfig."""
    made = Server(replace(listen_config(tls, echo.port, *addresses), **changes))
    try:
        yield made
    finally:
        made.downlink.close()
        await _settle()


async def _settle() -> None:
    """Let callbacks and cancelled tasks finish, and sockets that linger close."""
    for _ in range(5):
        await asyncio.sleep(0.001)


class Daemon:
    """What a daemon is to its carrier process: starts or adopts it, and listens. Use as `async with`; the carrier stays."""

    def __init__(self, path: Path, config: DialConfig | ListenConfig) -> None:
        self._path = path
        self._config = config
        self.record = Record()

    async def __aenter__(self) -> Self:
        self.client = await CarrierClient.start(self._path, self._config)
        self._task = spawn(self._listen(), name="lab.daemon")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.detach()
        await asyncio.wait((self._task,))

    async def _listen(self) -> None:
        async for event in self.client.events():
            self.record.publish(event)


def _udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("127.0.0.1", 0))
    return sock


def resident_kib(pid: int, names: Sequence[str] = ("VmRSS",)) -> dict[str, int]:
    """Memory of a process from /proc/PID/status."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0].rstrip(":") in names}
