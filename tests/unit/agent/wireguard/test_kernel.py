"""The conversation with the kernel, over a socket that says what a test wants it to say."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest

from agent.errors import HostError
from agent.host import RemoveAllowedIPs, SetDevice, SetPeer
from agent.model import Peer, PrivateKey, PublicKey
from agent.nlmsg import NetlinkSocket, attribute
from agent.wireguard import genl, kernel
from agent.wireguard.kernel import KernelWireGuard

FAMILY = 31
ONE, TWO = PublicKey(b"\1" * 32), PublicKey(b"\2" * 32)
ERROR, DONE, INTERRUPTED, CAPPED, TEXT = 2, 3, 0x10, 0x100, 0x200

Reply = Callable[[int], bytes]


def message(kind: int, payload: bytes, flags: int = 0) -> Reply:
    return lambda sequence: struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def device(*peers: PublicKey, flags: int = 0) -> Reply:
    """One dump message that tells of peers."""
    steps = [SetPeer("wg0", peer, frozenset({IPv4Network((peer.raw[0] << 24, 8))})) for peer in peers]
    (attributes,) = genl.set_requests(steps, throwaway_key=bytes, scope_index=int)
    return message(FAMILY, bytes(4) + attributes, flags | 2)


def ack(code: int = 0, flags: int = 0, tail: bytes = b"") -> Reply:
    return message(ERROR, struct.pack("=i", -code) + bytes(16) + tail, flags)


def done(flags: int = 0) -> Reply:
    return message(DONE, struct.pack("=i", 0), flags)


FOUND = [message(16, bytes(4) + attribute(1, struct.pack("=H", FAMILY)))]
MISSING = [ack(errno.ENOENT)]


class Script:
    """Each conversation is one socket; `dialogues` are the answers to its requests after the family was looked up."""

    def __init__(self, *dialogues: list[list[Reply]], family: list[Reply] = FOUND) -> None:
        self._dialogues = list(dialogues)
        self._family = family
        self.requests: list[bytes] = []
        self.opened = self.closed = 0
        self.threads: set[int] = set()

    def open(self) -> NetlinkSocket:
        self.opened += 1
        self.threads.add(threading.get_ident())
        dialogue = [self._family, *(self._dialogues.pop(0) if self._dialogues else [])]
        return _Scripted(self, dialogue)

    @property
    def backend(self) -> KernelWireGuard:
        return KernelWireGuard(self.open)


class _Scripted(NetlinkSocket):
    """A netlink socket whose other end is the script."""

    def __init__(self, script: Script, dialogue: list[list[Reply]]) -> None:
        self._sock = _ScriptedEnd(script, dialogue)  # type: ignore[assignment]
        self._sequence = 0


class _ScriptedEnd:
    def __init__(self, script: Script, dialogue: list[list[Reply]]) -> None:
        self._script = script
        self._dialogue = dialogue
        self._pending: list[bytes] = []

    def send(self, data: bytes, /) -> int:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        assert length == len(data)
        assert kind in (16, FAMILY)
        if kind == FAMILY:
            self._script.requests.append(data)
        self._pending = [reply(sequence) for reply in self._dialogue.pop(0)]
        return len(data)

    def recv(self, size: int, /) -> bytes:
        return self._pending.pop(0)

    def close(self) -> None:
        self._script.closed += 1


async def test_a_dump_over_several_datagrams_is_one_device() -> None:
    script = Script([[device(ONE), device(TWO), done()]])
    state = await script.backend.read("wg0")
    assert state is not None
    assert {peer.public_key for peer in state.peers} == {ONE, TWO}
    assert script.opened == script.closed == 1


async def test_an_interrupted_dump_is_thrown_away_and_asked_for_again() -> None:
    torn = [device(ONE), device(ONE, flags=INTERRUPTED), done()]
    torn_at_the_end = [device(ONE), done(INTERRUPTED)]
    script = Script([torn, torn_at_the_end, [device(TWO), done()]])
    state = await script.backend.read("wg0")
    assert state is not None
    assert state.peers == {Peer(TWO, frozenset({IPv4Network("2.0.0.0/8")}))}
    assert len(script.requests) == 3


async def test_a_device_that_never_rests_is_an_error_not_a_torn_answer() -> None:
    script = Script([[device(ONE), done(INTERRUPTED)]] * 100)
    with pytest.raises(HostError, match="changed during each") as caught:
        await script.backend.read("wg0")
    assert caught.value.errno == errno.EAGAIN
    assert script.opened == script.closed == 1


async def test_answers_to_an_abandoned_request_are_skipped() -> None:
    stale = struct.pack("=IHHII", 20, ERROR, 0, 999, 0) + struct.pack("=i", -errno.EIO)
    script = Script([[lambda _: stale, device(ONE), done()]])
    assert await script.backend.read("wg0") is not None


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EOPNOTSUPP])
async def test_no_device_and_a_device_of_another_kind_are_none(code: int) -> None:
    assert await Script([[ack(code)]]).backend.read("wg0") is None


async def test_without_the_module_nothing_is_there_and_setting_says_so() -> None:
    assert await Script(family=MISSING).backend.read("wg0") is None
    script = Script(family=MISSING)
    with pytest.raises(HostError) as caught:
        await script.backend.apply([SetDevice("wg0", fwmark=1)])
    assert caught.value.errno == errno.ENODEV
    await Script(family=MISSING).backend.delete("wg0")
    assert script.opened == script.closed == 1


@pytest.mark.parametrize("capped", [True, False])
async def test_the_kernels_own_words_are_in_the_error_and_the_request_is_not(capped: bool) -> None:
    text = attribute(1, b"Peer is not in the mood\0")
    echo = struct.pack("=IHHII", 24, FAMILY, 5, 2, 0) + b"KEYSTUFF"
    payload = struct.pack("=i", -errno.EINVAL) + (echo[:16] if capped else echo) + text
    script = Script([[message(ERROR, payload, TEXT | (CAPPED if capped else 0))]])
    with pytest.raises(HostError) as caught:
        await script.backend.apply([SetDevice("wg0", PrivateKey(b"KEYSTUFF" * 4))])
    assert caught.value.errno == errno.EINVAL
    assert "Peer is not in the mood" in str(caught.value)
    assert "KEYSTUFF" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_missing_capability_is_named() -> None:
    with pytest.raises(HostError, match="CAP_NET_ADMIN") as caught:
        await Script([[ack(errno.EPERM)]]).backend.read("wg0")
    assert caught.value.errno == errno.EPERM


async def test_the_first_refusal_ends_the_batch() -> None:
    script = Script([[ack()], [ack(errno.ENODEV)], [ack()]])
    steps = [SetDevice("wg0", fwmark=1), SetDevice("wg0", fwmark=2), SetDevice("wg0", fwmark=3)]
    with pytest.raises(HostError):
        await script.backend.apply(steps)
    assert len(script.requests) == 2
    assert script.opened == script.closed == 1


async def test_a_number_that_no_attribute_holds_is_our_error() -> None:
    with pytest.raises(HostError, match="out of range"):
        await Script().backend.apply([SetPeer("wg0", ONE, persistent_keepalive_s=70_000)])


async def test_nonsense_from_the_kernel_is_our_error() -> None:
    nonsense = message(FAMILY, bytes(4) + struct.pack("=HH", 40_000, 8))
    with pytest.raises(HostError, match="makes no sense"):
        await Script([[nonsense, done()]]).backend.read("wg0")


async def test_small_work_is_done_at_once_and_large_work_in_a_thread() -> None:
    here = threading.get_ident()
    small = Script([[ack()]])
    await small.backend.apply([SetPeer("wg0", ONE)])
    assert small.threads == {here}
    large = Script([[ack()]])
    networks = frozenset(IPv4Network((number, 32)) for number in range(2_000))
    await large.backend.apply([RemoveAllowedIPs("wg0", ONE, networks)])
    assert here not in large.threads

    unknown = Script([[device(ONE), done()]], [[device(ONE), done()]])
    backend = unknown.backend
    await backend.read("wg0")
    assert here not in unknown.threads
    await backend.read("wg0")
    assert here in unknown.threads


async def test_a_real_socket_finds_no_device_of_a_name_that_is_not_there() -> None:
    """Runs wherever there is netlink: the kernel either has no WireGuard or no such device."""
    assert await KernelWireGuard().read(f"no{os.getpid():x}") is None


def test_an_interface_that_is_not_there_has_an_errno() -> None:
    with pytest.raises(OSError, match="No such device") as caught:
        kernel.link_index(f"no{os.getpid():x}")
    assert caught.value.errno == errno.ENODEV


async def test_deleting_a_link_that_is_gone_is_no_error_and_setting_it_is() -> None:
    name = f"no{os.getpid():x}"
    await kernel.delete_link(name)
    with pytest.raises(HostError) as caught:
        await kernel.set_link(name, alias="rhizome")
    assert caught.value.errno == errno.ENODEV
