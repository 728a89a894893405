"""WireGuard in the Linux kernel: devices over rtnetlink by pyroute2, keys and peers over generic netlink by our own codec.

pyroute2's WireGuard class sets one peer per message, does not merge split dumps, does not notice interrupted ones, and
cannot send more than 2,338 allowed-ips; see `agent.wireguard.genl` for what takes its place.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.errors import HostError, Unsupported
from agent.host import CreateDevice, RemoveAllowedIPs, SetPeer, WireGuardStep
from agent.model import DeviceState
from agent.nlmsg import NetlinkSocket, Request, attribute, attributes
from agent.wireguard import genl

T = TypeVar("T")

_NETLINK_GENERIC = 16
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 16, 3, 1, 2
_GENL_HEADER = struct.Struct("=BBH")  # command, version, reserved

#: Peers and allowed-ips that are coded and exchanged on the event loop (under 20 ms); more than that goes to a thread.
_INLINE = 1_000
#: No device has such an MTU: the kernel refuses it, but only after it has found the link type.
_IMPOSSIBLE_MTU_BYTES = 0x7FFFFFFF


def open_socket() -> NetlinkSocket:
    """A generic netlink socket in the network namespace of this thread."""
    return NetlinkSocket(_NETLINK_GENERIC)


class KernelWireGuard:
    """`agent.host.WireGuard` over the kernel's own devices."""

    def __init__(self, open_socket: Callable[[], NetlinkSocket] = open_socket) -> None:
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
        try:
            with self._family() as (netlink, family):
                messages = netlink.dump(family, _body(genl.CMD_GET_DEVICE, genl.get_request(ifname)))
            return genl.decode((message[_GENL_HEADER.size :] for message in messages), socket.if_indextoname)
        except OSError as exc:
            if exc.errno in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOENT):
                return None
            raise _error(f"cannot read {ifname}", exc) from exc
        except ValueError as exc:
            raise HostError(f"cannot read {ifname}: the kernel's answer makes no sense ({exc})") from exc

    def _set(self, steps: Sequence[WireGuardStep]) -> None:
        ifname = steps[0].ifname
        try:
            requests = genl.set_requests(steps, throwaway_key=_throwaway_key, scope_index=link_index)
            with self._family() as (netlink, family):
                for request in requests:
                    _exchange(netlink, family, request)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                raise HostError(f"cannot set {ifname}: WireGuard is gone from this kernel", errno.ENODEV) from exc
            raise _error(f"cannot set {ifname}", exc) from exc
        except struct.error as exc:
            raise HostError(f"cannot set {ifname}: a number is out of range ({exc})", errno.ERANGE) from exc

    def _clear(self, ifname: str) -> bool:
        """Take all peers away; False when there is no such device."""
        try:
            with self._family() as (netlink, family):
                _exchange(netlink, family, genl.clear_request(ifname))
        except OSError as exc:
            if exc.errno in (errno.ENODEV, errno.ENOENT):
                return False
            raise _error(f"cannot delete {ifname}", exc) from exc
        return True

    @contextmanager
    def _family(self) -> Iterator[tuple[NetlinkSocket, int]]:
        """A socket for one conversation, and the number of the WireGuard family; looking it up also loads the module.

        Raises OSError(ENOENT) when this kernel has no WireGuard.
        """
        netlink = self._open_socket()
        try:
            name = attribute(_CTRL_FAMILY_NAME, genl.FAMILY_NAME.encode() + b"\0")
            answer = netlink.get(_GENL_ID_CTRL, _body(_CTRL_CMD_GETFAMILY, name))
            (family,) = struct.unpack("=H", attributes(answer, _GENL_HEADER.size)[_CTRL_FAMILY_ID])
            yield netlink, family
        finally:
            netlink.close()


def _body(command: int, attributes: bytes) -> bytes:
    return _GENL_HEADER.pack(command, genl.VERSION, 0) + attributes


def _exchange(netlink: NetlinkSocket, family: int, attributes: bytes) -> None:
    for refusal in netlink.exchange([Request(family, 0, _body(genl.CMD_SET_DEVICE, attributes))]).values():
        raise refusal


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
