"""WireGuard in the Linux kernel: devices over rtnetlink by pyroute2, keys and peers over generic netlink by our own codec.

pyroute2's WireGuard class sets one peer per message, does not merge split dumps, does not notice interrupted ones, and
cannot send more than 2,338 allowed-ips; see `agent.wireguard.genl` for what takes its place.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.errors import HostError, Unsupported
from agent.host import CreateDevice, RemoveAllowedIPs, SetPeer, WireGuardStep
from agent.model import DeviceState
from agent.wireguard import genl

T = TypeVar("T")

log = logging.getLogger("rhizome.wireguard")

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GENERIC = 270, 10, 11, 16
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x01, 0x04, 0x300
_FLAG_DUMP_INTR, _FLAG_CAPPED, _FLAG_ACK_TLVS = 0x10, 0x100, 0x200
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 16, 3, 1, 2
_EXT_ACK_TEXT = 1

_MESSAGE = struct.Struct("=IHHII")
_RECEIVE_BYTES = 1 << 16  # the kernel's dump messages have at most 32 KiB
_TIMEOUT_S = 30.0
_DUMP_ATTEMPTS = 20
#: Peers and allowed-ips that are coded and exchanged on the event loop (under 20 ms); more than that goes to a thread.
_INLINE = 1_000
#: No device has such an MTU: the kernel refuses it, but only after it has found the link type.
_IMPOSSIBLE_MTU_BYTES = 0x7FFFFFFF


class Socket(Protocol):
    """What a conversation needs of a netlink socket."""

    def send(self, data: bytes, /) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


def open_socket() -> Socket:
    """A generic netlink socket in the network namespace of this thread."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
    try:
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        # Without this a refusal carries the whole request back, keys and all.
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.settimeout(_TIMEOUT_S)
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


class _DumpInterruptedError(Exception):
    """The table changed while the kernel was listing it: the answer may lack entries or have them twice."""


class _Conversation:
    """Requests to the WireGuard family, one after the other, on a socket of their own."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._sequence = 0
        self._family = _GENL_ID_CTRL

    def __enter__(self) -> _Conversation:
        """Looks the family up, which also loads the module. OSError(ENOENT): this kernel has no WireGuard."""
        try:
            name = genl.attribute(_CTRL_FAMILY_NAME, genl.FAMILY_NAME.encode() + b"\0")
            (message,) = self.call(_CTRL_CMD_GETFAMILY, name)
            (self._family,) = struct.unpack("=H", dict(genl.attributes(message))[_CTRL_FAMILY_ID])
        except BaseException:
            self._sock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def call(self, command: int, attributes: bytes, flags: int = 0) -> list[bytes]:
        """Attributes of each message of the answer. Raises OSError with the kernel's own words, or _DumpInterruptedError."""
        self._sequence += 1
        body = struct.pack("=BBH", command, genl.VERSION, 0) + attributes
        size = _MESSAGE.size + len(body)
        self._sock.send(_MESSAGE.pack(size, self._family, _REQUEST | _ACK | flags, self._sequence, 0) + body)
        answers: list[bytes] = []
        interrupted = False
        while True:
            data = self._sock.recv(_RECEIVE_BYTES)
            offset = 0
            while offset + _MESSAGE.size <= len(data):
                length, kind, reply_flags, sequence, _ = _MESSAGE.unpack_from(data, offset)
                payload = data[offset + _MESSAGE.size : offset + length]
                offset += max((length + 3) & ~3, _MESSAGE.size)
                if sequence != self._sequence:
                    continue
                interrupted |= bool(reply_flags & _FLAG_DUMP_INTR)
                if kind not in (_NLMSG_ERROR, _NLMSG_DONE):
                    answers.append(payload[4:])
                    continue
                _raise_refusal(kind, reply_flags, payload)
                if interrupted:
                    raise _DumpInterruptedError
                return answers


def _raise_refusal(kind: int, flags: int, payload: bytes) -> None:
    """Raises OSError unless the acknowledgement says 0."""
    code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
    if code == 0:
        return
    words = os.strerror(code)
    if flags & _FLAG_ACK_TLVS:
        start = 4
        if kind == _NLMSG_ERROR:  # the refused request's header, and all of it unless capped, stand in between
            start += _MESSAGE.size if flags & _FLAG_CAPPED else struct.unpack_from("=I", payload, 4)[0]
        text = dict(genl.attributes(payload[start:])).get(_EXT_ACK_TEXT, b"")
        if text:
            words += f" ({text.rstrip(bytes(1)).decode(errors='replace')})"
    raise OSError(code, words)


class KernelWireGuard:
    """`agent.host.WireGuard` over the kernel's own devices."""

    def __init__(self, open_socket: Callable[[], Socket] = open_socket) -> None:
        self._open_socket = open_socket
        self._sizes: dict[str, int] = {}  # peers and allowed-ips of each device when it was last read

    async def create(self, step: CreateDevice) -> None:
        try:
            async with AsyncIPRoute(ext_ack=True, strict_check=True) as ipr:
                await ipr.link("add", ifname=step.ifname, kind="wireguard", mtu=step.mtu_bytes)
        except (NetlinkError, OSError) as exc:
            if (reason := _unsupported(_code(exc))) is not None:
                raise Unsupported(f"cannot create {step.ifname}: {reason}") from exc
            raise _link_error(f"cannot create {step.ifname}", exc) from exc
        await set_link(step.ifname, alias=step.alias)  # Linux ignores an alias in the message that adds the link
        self._sizes[step.ifname] = 0

    async def read(self, ifname: str) -> DeviceState | None:
        size = self._sizes.get(ifname, _INLINE)
        state = await _at_ease(lambda: self._dump(ifname), size)
        if state is None:
            self._sizes.pop(ifname, None)
        else:
            self._sizes[ifname] = sum(1 + len(peer.allowed_ips) for peer in state.peers)
        return state

    async def apply(self, steps: Sequence[WireGuardStep]) -> None:
        if not steps:
            return
        await _at_ease(lambda: self._set(steps), sum(_weight(step) for step in steps))

    async def delete(self, ifname: str) -> None:
        # Deleting a device waits for an RCU grace period per peer, emptying it for one in all: 18 ms for each peer saved.
        cleared = await _at_ease(lambda: self._clear(ifname), self._sizes.pop(ifname, _INLINE))
        if cleared:
            await delete_link(ifname)

    def _dump(self, ifname: str) -> DeviceState | None:
        for _ in range(_DUMP_ATTEMPTS):
            try:
                with _Conversation(self._open_socket()) as wireguard:
                    messages = wireguard.call(genl.CMD_GET_DEVICE, genl.get_request(ifname), _DUMP)
                return genl.decode(messages, socket.if_indextoname)
            except _DumpInterruptedError:
                log.debug("dump of %s interrupted, again", ifname, extra={"event": "wireguard.dump_interrupted"})
            except OSError as exc:
                if exc.errno in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOENT):
                    return None
                raise _error(f"cannot read {ifname}", exc) from exc
            except ValueError as exc:
                raise HostError(f"cannot read {ifname}: the kernel's answer makes no sense ({exc})") from exc
        raise HostError(
            f"cannot read {ifname}: it changed during each of {_DUMP_ATTEMPTS} looks; what else writes to it?",
            errno.EAGAIN,
        )

    def _set(self, steps: Sequence[WireGuardStep]) -> None:
        ifname = steps[0].ifname
        try:
            requests = genl.set_requests(steps, throwaway_key=_throwaway_key, scope_index=link_index)
            with _Conversation(self._open_socket()) as wireguard:
                for request in requests:
                    wireguard.call(genl.CMD_SET_DEVICE, request)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                raise HostError(f"cannot set {ifname}: WireGuard is gone from this kernel", errno.ENODEV) from exc
            raise _error(f"cannot set {ifname}", exc) from exc
        except struct.error as exc:
            raise HostError(f"cannot set {ifname}: a number is out of range ({exc})", errno.ERANGE) from exc

    def _clear(self, ifname: str) -> bool:
        """Take all peers away; False when there is no such device."""
        try:
            with _Conversation(self._open_socket()) as wireguard:
                wireguard.call(genl.CMD_SET_DEVICE, genl.clear_request(ifname))
        except OSError as exc:
            if exc.errno in (errno.ENODEV, errno.ENOENT):
                return False
            raise _error(f"cannot delete {ifname}", exc) from exc
        return True


async def probe() -> str | None:
    """None when this kernel makes WireGuard devices for us, otherwise why it does not. Creates nothing; may load the module."""
    try:
        async with AsyncIPRoute() as ipr:
            name = f"probe{os.getpid():x}"[:15]
            await ipr.link("add", ifname=name, kind="wireguard", mtu=_IMPOSSIBLE_MTU_BYTES)
    except (NetlinkError, OSError) as exc:
        if (reason := _unsupported(_code(exc))) is not None:
            return reason
        if _code(exc) in (errno.EINVAL, errno.ERANGE):
            return None
        raise _link_error("cannot ask the kernel for WireGuard", exc) from exc
    await delete_link(name)
    return None


def link_index(ifname: str) -> int:
    """Raises OSError(ENODEV); what socket.if_nametoindex raises has no errno."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError as exc:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from exc


async def set_link(ifname: str, *, mtu_bytes: int | None = None, alias: str | None = None) -> None:
    """Change a link of any kind; None leaves as it is. Raises HostError."""
    changes = {"mtu": mtu_bytes, "ifalias": alias}
    try:
        index = link_index(ifname)
        async with AsyncIPRoute(ext_ack=True, strict_check=True) as ipr:
            await ipr.link("set", index=index, **{key: value for key, value in changes.items() if value is not None})
    except (NetlinkError, OSError) as exc:
        raise _link_error(f"cannot set {ifname}", exc) from exc


async def delete_link(ifname: str) -> None:
    """Remove a link of any kind. No error when it is gone already. Raises HostError."""
    try:
        index = link_index(ifname)
        async with AsyncIPRoute(ext_ack=True, strict_check=True) as ipr:
            await ipr.link("del", index=index)
    except (NetlinkError, OSError) as exc:
        if _code(exc) != errno.ENODEV:
            raise _link_error(f"cannot delete {ifname}", exc) from exc


async def _at_ease(work: Callable[[], T], size: int) -> T:
    """Small work at once, large work in a thread so that the event loop stays responsive."""
    return work() if size < _INLINE else await asyncio.to_thread(work)


def _weight(step: WireGuardStep) -> int:
    if isinstance(step, SetPeer):
        return 1 + len(step.add_allowed_ips)
    return len(step.allowed_ips) if isinstance(step, RemoveAllowedIPs) else 1


def _throwaway_key() -> bytes:
    return os.urandom(32)


def _unsupported(code: int) -> str | None:
    """What an errno of adding a link says about this host; None when it says nothing."""
    if code == errno.EOPNOTSUPP:
        return "this kernel has no WireGuard (load the wireguard module, or use --wireguard=userspace)"
    if code == errno.EPERM:
        return "this process may not manage network devices (give it CAP_NET_ADMIN)"
    return None


def _code(exc: Exception) -> int:
    """Positive errno of an OSError or of pyroute2's NetlinkError."""
    code = exc.code if isinstance(exc, NetlinkError) else getattr(exc, "errno", None)
    return abs(code) if isinstance(code, int) else 0


def _link_error(what: str, exc: Exception) -> HostError:
    code = _code(exc)
    words = exc.args[1] if len(exc.args) > 1 and exc.args[1] else os.strerror(code)
    return HostError(f"{what}: {words} (errno {code})", code)


def _error(what: str, exc: OSError) -> HostError:
    hint = "; give this process CAP_NET_ADMIN" if exc.errno == errno.EPERM else ""
    return HostError(f"{what}: {exc.strerror or exc} (errno {exc.errno or 0}){hint}", exc.errno or 0)
