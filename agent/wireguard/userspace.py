"""WireGuard in user space: one `wireguard-go` per device, in the background, configured through its UAPI socket.

The process is nobody's child: `wireguard-go NAME` opens the TUN device and its socket, starts itself anew in the
background and exits. So it outlives the daemon that wanted it (fail static), and a later daemon adopts it by talking to its
socket. When it dies, device, addresses and routes are gone; `read` says None, and the engine makes the device anew.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.errors import HostError, Unsupported
from agent.host import CreateDevice, RemoveAllowedIPs, SetDevice, WireGuardStep
from agent.model import DeviceState
from agent.run import spawn
from agent.wireguard import uapi
from agent.wireguard.kernel import delete_link, link_index, set_link

log = logging.getLogger("rhizome.wireguard")

#: Compiled into wireguard-go. All network namespaces share it: device names must differ between them.
SOCKETS = Path("/var/run/wireguard")

_ANSWER_S = 30.0  # setting 10,000 peers takes 2 s
_START_S = 10.0
_GONE_S = 2.0
_READ_BYTES = 1 << 18
#: A longer reply is parsed in a thread; this much takes under 20 ms.
_INLINE_BYTES = 100_000
#: Neither "no such file" nor "nobody listens" nor "hung up in the middle": wireguard-go is not there.
_GONE = (FileNotFoundError, ConnectionError, EOFError)

_SIOCETHTOOL, _ETHTOOL_GDRVINFO, _DRVINFO_BYTES = 0x8946, 3, 196


class UserspaceWireGuard:
    """`agent.host.WireGuard` over wireguard-go processes.

    `on_exit` is called with the name of a device whose process ended unasked. `memory_limit_mib` is a soft limit
    (GOMEMLIMIT) for each process; without one it takes 300 MiB and more under load. 100 fits hundreds of peers.
    """

    def __init__(
        self, program: Path, *, on_exit: Callable[[str], None] | None = None, memory_limit_mib: int = 100
    ) -> None:
        self._program = program
        self._on_exit = on_exit
        self._memory_limit_mib = memory_limit_mib
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._removes_single: dict[str, bool] = {}  # what the feature test said of each process

    async def create(self, step: CreateDevice) -> None:
        if _driver(step.ifname) is not None and not await self._goes_by_itself(step.ifname):
            raise HostError(f"cannot create {step.ifname}: it exists", errno.EEXIST)
        await self._start(step.ifname)
        try:
            # The background process sets its own MTU while it starts; it has done so when it answers.
            await self._ask(step.ifname, uapi.GET)
            await set_link(step.ifname, mtu_bytes=step.mtu_bytes, alias=step.alias)
        except BaseException:
            with contextlib.suppress(HostError):
                await delete_link(step.ifname)
            raise
        self._watch(step.ifname)

    async def read(self, ifname: str) -> DeviceState | None:
        if _driver(ifname) != "tun":
            return None
        try:
            reply = await self._ask(ifname, uapi.GET)
            state = uapi.parse(reply) if len(reply) < _INLINE_BYTES else await asyncio.to_thread(uapi.parse, reply)
        except _GONE:
            return None
        except uapi.UapiError as exc:
            raise _refused(f"cannot read {ifname}", exc) from exc
        self._watch(ifname)
        return state

    async def apply(self, steps: Sequence[WireGuardStep]) -> None:
        if not steps:
            return
        ifname = steps[0].ifname
        try:
            if _driver(ifname) != "tun":
                raise FileNotFoundError
            steps = await self._without_idle_ports(ifname, steps)
            removes_single = any(isinstance(step, RemoveAllowedIPs) for step in steps) and await self._feature(ifname)
            for request in uapi.set_requests(steps, throwaway_key=_throwaway_key, removes_single=removes_single):
                uapi.check(await self._ask(ifname, request))
        except _GONE as exc:
            raise HostError(f"cannot set {ifname}: its wireguard-go is gone", errno.ENODEV) from exc
        except uapi.UapiError as exc:
            raise _refused(f"cannot set {ifname}", exc) from exc

    async def delete(self, ifname: str) -> None:
        self._removes_single.pop(ifname, None)
        if watch := self._watches.pop(ifname, None):
            watch.cancel()
        if _driver(ifname) is None:
            return
        try:
            with await _connect(ifname) as sock:
                await delete_link(ifname)  # wireguard-go exits when its TUN goes, and removes its socket first
                async with asyncio.timeout(_GONE_S):
                    await _end(sock)
        except _GONE as exc:
            if not await self._goes_by_itself(ifname):
                raise HostError(
                    f"cannot delete {ifname}: it is not a device of wireguard-go", errno.EOPNOTSUPP
                ) from exc
        except TimeoutError as exc:
            raise HostError(f"the wireguard-go of {ifname} does not end", errno.ETIMEDOUT) from exc

    async def _goes_by_itself(self, ifname: str) -> bool:
        """Whether it is the TUN of a process that is ending: its connections close a moment before its device goes."""
        try:
            (await _connect(ifname)).close()
        except _GONE:
            for _ in range(100):
                if _driver(ifname) != "tun":
                    break
                await asyncio.sleep(_GONE_S / 100)
        return _driver(ifname) is None

    async def _start(self, ifname: str) -> None:
        """Run wireguard-go until it has put itself into the background: then its TUN and its socket are there."""
        environment = {
            "PATH": os.defpath,
            "GOGC": "off",  # collect when the limit is near, not before: the same speed with a fifth of the memory
            "GOMEMLIMIT": f"{self._memory_limit_mib}MiB",
            **{name: os.environ[name] for name in ("GOGC", "GOMEMLIMIT", "GOMAXPROCS") if name in os.environ},
        }
        try:
            process = await asyncio.create_subprocess_exec(
                self._program, ifname,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise Unsupported(
                f"cannot run {self._program}: {exc.strerror} (scripts/install-wireguard-go makes one)"
            ) from exc
        try:
            async with asyncio.timeout(_START_S):
                said, _ = await process.communicate()
        except BaseException as exc:
            process.kill()
            await process.wait()
            if isinstance(exc, TimeoutError):
                raise HostError(f"cannot create {ifname}: wireguard-go does not start", errno.ETIMEDOUT) from exc
            raise
        if process.returncode != 0:
            raise HostError(f"cannot create {ifname}: {_words(said)}", errno.EBUSY)
        log.debug("wireguard-go of %s started", ifname, extra={"event": "wireguard.started", "ifname": ifname})

    async def _ask(self, ifname: str, request: bytes) -> bytes:
        """One request on a connection of its own: after a refusal the rest of the input would be taken for new requests."""
        loop = asyncio.get_running_loop()
        reply = bytearray()
        try:
            async with asyncio.timeout(_ANSWER_S):
                with await _connect(ifname) as sock:
                    await loop.sock_sendall(sock, request)
                    while not reply.endswith(uapi.END):
                        if not (data := await loop.sock_recv(sock, _READ_BYTES)):
                            raise EOFError
                        reply += data
        except TimeoutError as exc:
            raise HostError(f"the wireguard-go of {ifname} does not answer", errno.ETIMEDOUT) from exc
        except PermissionError as exc:
            raise HostError(f"cannot open {_socket(ifname)}: run as root", errno.EACCES) from exc
        return bytes(reply)

    async def _without_idle_ports(self, ifname: str, steps: Sequence[WireGuardStep]) -> Sequence[WireGuardStep]:
        """Without listen ports that are set already: wireguard-go would close and open its UDP socket for them."""
        if not any(isinstance(step, SetDevice) and step.listen_port is not None for step in steps):
            return steps
        port = uapi.parse(await self._ask(ifname, uapi.GET)).listen_port
        return [
            SetDevice(step.ifname, step.private_key, None, step.fwmark)
            if isinstance(step, SetDevice) and step.listen_port == port
            else step
            for step in steps
        ]

    async def _feature(self, ifname: str) -> bool:
        """Whether this process removes single allowed-ips. Distributions' version numbers do not tell."""
        if ifname not in self._removes_single:
            reply = await self._ask(ifname, uapi.feature_request(_throwaway_key()))
            try:
                uapi.check(reply)
                self._removes_single[ifname] = True
            except uapi.UapiError:
                self._removes_single[ifname] = False
        return self._removes_single[ifname]

    def _watch(self, ifname: str) -> None:
        watch = self._watches.get(ifname)
        if watch is None or watch.done():
            self._watches[ifname] = spawn(self._until_exit(ifname), name=f"wireguard-go.watch.{ifname}")

    async def _until_exit(self, ifname: str) -> None:
        """Hold a connection open: its end is the end of the process, whoever started it."""
        try:
            with await _connect(ifname) as sock:
                await _end(sock)
        except OSError:
            return  # gone before we looked; the next read says so
        self._removes_single.pop(ifname, None)
        log.warning("wireguard-go of %s ended", ifname, extra={"event": "wireguard.ended", "ifname": ifname})
        if self._on_exit is not None:
            self._on_exit(ifname)


def _socket(ifname: str) -> Path:
    return SOCKETS / f"{ifname}.sock"


async def _connect(ifname: str) -> socket.socket:
    """A non-blocking connection to the wireguard-go of a device. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(_socket(ifname)))
    except BaseException:
        sock.close()
        raise
    return sock


async def _end(sock: socket.socket) -> None:
    """Wait until the other side closes the connection, which is when its process ends."""
    with contextlib.suppress(ConnectionError):
        await asyncio.get_running_loop().sock_recv(sock, 1)


def _driver(ifname: str) -> str | None:
    """What drives a link of this network namespace ("tun", "wireguard", ...), "" where nothing says so; None: no such link."""
    try:
        link_index(ifname)
    except OSError:
        return None
    info = array.array("B", struct.pack("=I", _ETHTOOL_GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"))
    address, _ = info.buffer_info()
    request = struct.pack("16sP", ifname.encode(), address).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError as exc:
            return None if exc.errno == errno.ENODEV else ""
    return info.tobytes()[4:36].rstrip(b"\0").decode(errors="replace")


def _throwaway_key() -> bytes:
    return os.urandom(32)


def _words(said: bytes) -> str:
    """The last thing wireguard-go said, without the frame in which it recommends the kernel's WireGuard."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    spoken = [line for line in lines if line and line[0] not in "┌│└"]
    return f"wireguard-go says {spoken[-1]!r}" if spoken else "wireguard-go ends without a word"


def _refused(what: str, exc: uapi.UapiError) -> HostError:
    words = f"wireguard-go refused: {os.strerror(exc.errno)} (errno {exc.errno})" if exc.errno else str(exc)
    return HostError(f"{what}: {words}", exc.errno)
