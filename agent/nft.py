"""Applies our one nft table through the nft program, atomically, and recognises it again.

A table that was applied is sealed: an empty chain, `seal`, carries in its comment the digests of the text that was applied
and of the listing that came of it. As long as a fresh listing has that digest, nobody changed the table; and whoever
knows a text of the first digest knows what was applied. So a new process adopts the table of its predecessor without
touching it, and a table that was edited while nobody looked is not trusted. The seal protects against accidents, not
against somebody with CAP_NET_ADMIN who wants to deceive us. It is also gone when a process died between applying and
sealing, or when another version of nft lists in other words: then the table is applied again, which harms nothing.

The kernel's generation number of the rulesets says when a listing is worth taking, so that looking costs one system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import shutil
import struct

from agent.errors import HostError, Unsupported
from agent.firewall import TABLE
from agent.nlmsg import NETFILTER, NetlinkSocket, attribute, attributes

_TIMEOUT_S = 30.0
_REPLACE = f"table inet {TABLE}\ndelete table inet {TABLE}\n"  # works whether or not there is one
_SEAL = re.compile(r'\tchain seal \{\n\t\tcomment "([0-9a-f]{32}) ([0-9a-f]{32})"\n\t\}\n')

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_TABLE, _GET_GENERATION, _GET_OBJECT = _SUBSYSTEM | 1, _SUBSYSTEM | 16, _SUBSYSTEM | 19
_NFGENMSG = struct.Struct("=BBH")
_NFPROTO_INET = 1
_FIRST_ATTRIBUTE = 1  # NFTA_TABLE_NAME, NFTA_GEN_ID
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 1, 2, 3, 4  # NFTA_OBJ_*
_COUNTER = 1  # NFT_OBJECT_COUNTER
_COUNTER_PACKETS = 2  # NFTA_COUNTER_PACKETS
_NO_NFTABLES = {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}


class Nft:
    """Our table in the network namespace of this process. Needs the program nft only when there is a table to handle.

    The netlink port ids of the nft processes that make our changes, which are their process ids, are put into `ports`.
    """

    def __init__(self, ports: set[int]) -> None:
        self._ports = ports
        self._own: set[int] = set()  # those of `ports` that came from here
        self._socket: NetlinkSocket | None = None
        self._applied: str | None = None
        self._generation: int | None = None  # of the last look
        self._found: str | None = (
            None  # at the last look: the sealed text's digest, "" for a table without a valid seal
        )

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def read(self, wanted: str | None = None) -> str | None:
        """The text of the table, if it is the one applied last or `wanted`; "" for any other, None when there is none.

        Raises Unsupported without nft or CAP_NET_ADMIN, otherwise HostError.
        """
        generation = self._ask_generation()
        if generation is None:
            return None
        if generation != self._generation:
            self._found = _sealed(await self._list()) if self._exists() else None
            self._generation = generation
        if not self._found:
            return self._found
        return next((t for t in (self._applied, wanted) if t is not None and _digest(t) == self._found), "")

    async def apply(self, text: str | None) -> None:
        """Replace the table by `text` in one transaction; None deletes it. Nothing is done to a table that is right.

        Raises Unsupported without nft or CAP_NET_ADMIN, HostError with nft's own words when it refuses.
        """
        self._applied = text
        if await self.read() == text:
            return
        self._ports -= self._own  # a process id may be somebody else's next time
        self._own.clear()
        await self._transaction(_REPLACE + (text or ""))
        if text is not None:
            listing = await self._list()
            if not listing:
                raise HostError(f"the firewall text does not make a table inet {TABLE}", errno.EINVAL)
            seal = f'comment "{_digest(text)} {_digest(_substance(listing))}"'
            await self._transaction(f"add chain inet {TABLE} seal {{ {seal}; }}\n")

    def counters(self) -> dict[str, int]:
        """Packets on each of the table's named counters since it was applied; empty when there is no table."""
        if self._ask_generation() is None:
            return {}
        assert self._socket is not None, "the generation was asked for first"
        table = TABLE.encode() + b"\0"
        try:
            found = self._socket.dump(
                _GET_OBJECT, _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + attribute(_OBJECT_TABLE, table)
            )
        except OSError as exc:
            raise _translated(exc) from exc
        objects = [attributes(body, _NFGENMSG.size) for body in found]
        return {
            each[_OBJECT_NAME].rstrip(b"\0").decode(): int.from_bytes(
                attributes(each[_OBJECT_DATA])[_COUNTER_PACKETS], "big"
            )
            for each in objects
            if each[_OBJECT_TABLE] == table and int.from_bytes(each[_OBJECT_TYPE], "big") == _COUNTER
        }

    async def _transaction(self, script: str) -> None:
        await self._run("-f", "-", script=script)

    async def _list(self) -> str:
        """The listing without counts; empty when the table is gone."""
        try:
            return await self._run("-s", "list", "table", "inet", TABLE)
        except HostError:
            if self._exists():
                raise
            return ""

    async def _run(self, *args: str, script: str | None = None) -> str:
        program = shutil.which("nft", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if program is None:
            raise Unsupported("the program nft is missing, so there is no firewall: install the package nftables")
        process = await asyncio.create_subprocess_exec(
            program,
            *args,
            stdin=asyncio.subprocess.DEVNULL if script is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        if script is not None:
            self._own.add(process.pid)
            self._ports.add(process.pid)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                out, err = await process.communicate(None if script is None else script.encode())
        except TimeoutError as exc:
            raise HostError(f"nft {' '.join(args)}: no answer within {_TIMEOUT_S:.0f} s", errno.ETIMEDOUT) from exc
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            words = (
                err.decode(errors="replace").strip().partition("\n")[0]
            )  # the first complaint; the rest follow from it
            if "Operation not permitted" in words:
                raise _not_permitted()
            raise HostError(f"nft {' '.join(args)}: {words or f'exit code {process.returncode}'}")
        return out.decode(errors="replace")

    def _ask_generation(self) -> int | None:
        """Changes with every transaction on any table; None when this kernel has no nf_tables."""
        try:
            if self._socket is None:
                self._socket = NetlinkSocket(NETFILTER)
            answer = self._socket.get(_GET_GENERATION, _NFGENMSG.pack(0, 0, 0))
        except OSError as exc:
            if exc.errno in _NO_NFTABLES:
                return None
            raise _translated(exc) from exc
        return int.from_bytes(attributes(answer, _NFGENMSG.size)[_FIRST_ATTRIBUTE], "big")

    def _exists(self) -> bool:
        assert self._socket is not None, "the generation was asked for first"
        try:
            name = attribute(_FIRST_ATTRIBUTE, TABLE.encode() + b"\0")
            self._socket.get(_GET_TABLE, _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + name)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return False
            raise _translated(exc) from exc
        return True


def _sealed(listing: str) -> str:
    """The digest of the text that was applied, if the listing still is what came of it; otherwise empty."""
    match = _SEAL.search(listing)
    if match is None or match[2] != _digest(_substance(_SEAL.sub("", listing))):
        return ""
    return match[1]


def _substance(listing: str) -> str:
    """The listing without its blank lines: how many of those there are depends on what else is in the table."""
    return "\n".join(line for line in listing.splitlines() if line)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _translated(exc: OSError) -> HostError | Unsupported:
    if exc.errno == errno.EPERM:
        return _not_permitted()
    return HostError(f"cannot look at the firewall: {exc.strerror or exc}", exc.errno or 0)


def _not_permitted() -> Unsupported:
    return Unsupported("this process may not see or change the firewall: give it CAP_NET_ADMIN")
