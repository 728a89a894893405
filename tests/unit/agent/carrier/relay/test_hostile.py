"""What a hostile peer can do to a relay: nothing to other streams, and a bounded amount to its own."""

from __future__ import annotations

import asyncio
import resource
import time

import pytest

from agent.carrier import capsule, outbox
from agent.carrier import receiver as receiver_module
from agent.carrier import relay as relay_module
from agent.carrier.relay import Relay
from tests.unit.agent.carrier.conftest import FakeWireGuard
from tests.unit.agent.carrier.relay.conftest import Start, datagram


async def test_a_peer_that_never_reads_is_bounded_and_holds_up_nobody(start: Start, wireguard: FakeWireGuard) -> None:
    stuck, other = start(), start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        wireguard.send(stuck.port.local_port, *[bytes(1452)] * 50)
        await asyncio.sleep(0)
    started = time.monotonic()
    wireguard.send(other.port.local_port, b"prompt")
    await other.peer.until(lambda: other.peer.payloads)
    assert time.monotonic() - started < 3
    sender = stuck.relay._sender
    assert sender.queue.waiting_bytes <= 1_500_000 and len(sender.queue) <= 1000
    drops = dict(stuck.relay.stats().drops)
    assert drops["cap"] > 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024, "KiB"


async def test_a_stuck_stream_goes_on_where_it_was(start: Start, wireguard: FakeWireGuard) -> None:
    """The record that TLS had begun is finished first; nothing is torn or repeated."""
    running = start(extensions=False)
    number = 0
    while running.relay._sender.is_clean or len(running.relay._sender.queue) < 200:
        wireguard.send(running.port.local_port, *[(number + n).to_bytes(4, "big") + bytes(1400) for n in range(50)])
        number += 50
        await asyncio.sleep(0)
    await running.peer.until(lambda: not running.relay._sender.queue and running.relay._sender.is_clean)
    wireguard.send(running.port.local_port, b"end")
    await running.peer.until(lambda: running.peer.payloads and running.peer.payloads[-1] == b"end")
    numbers = [int.from_bytes(p[:4], "big") for p in running.peer.payloads[:-1]]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == number - sum(count for _, count in running.relay.stats().drops + running.port.stats().drops)


async def test_handshakes_pass_a_closed_window(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    running.peer.acks = False
    for _ in range(100):
        wireguard.send(running.port.local_port, *[bytes(1452)] * 10)
        await asyncio.sleep(0)
    await running.peer.until(lambda: len(running.relay._sender.queue) > 500)
    handshake = b"\x01\0\0\0" + bytes(144)
    wireguard.send(running.port.local_port, handshake)
    await running.peer.until(lambda: handshake in running.peer.payloads)
    assert running.window.on_way <= running.window.size + capsule.RECORD_BYTES


async def test_acks_open_the_window_and_the_queue_drains(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    for _ in range(40):
        wireguard.send(running.port.local_port, *[bytes(1452)] * 10)
        await asyncio.sleep(0)
    await running.peer.until(lambda: not running.relay._sender.queue and not running.window.on_way)
    stats = running.relay.stats()
    assert stats.tx_packets == len(running.peer.payloads)
    assert stats.tx_packets + sum(count for _, count in stats.drops) == 400


@pytest.mark.parametrize("value", [1, 2**63, 2**64 - 1])
async def test_an_ack_that_runs_ahead_is_malformed(start: Start, value: int) -> None:
    running = start()
    await running.peer.send(capsule.encode_ack(value))
    assert await running.end() == "malformed"


async def test_acks_that_go_back_change_nothing(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    running.peer.acks = False
    wireguard.send(running.port.local_port, bytes(1000))
    await running.peer.until(lambda: running.peer.payloads)
    await running.peer.send(b"".join(capsule.encode_ack(n) for n in (1000, 500, 0, 999, 1000)))
    await running.peer.send(datagram(b"x"))
    await wireguard.until(1)
    assert not running.ends and running.window.on_way == 0


async def test_a_flood_of_pings_from_a_peer_that_does_not_read_queues_nothing(start: Start) -> None:
    running = start()
    await running.peer.send(capsule.encode_ping(bytes(8)) * 400_000, timeout_s=30)
    await asyncio.sleep(0.05)
    assert len(running.relay._outbox._bytes) < 64 * 1024
    assert not running.ends


async def test_messages_that_a_peer_does_not_read_end_the_stream(start: Start) -> None:
    running = start()
    for _ in range(1000):
        running.relay.send_control("x" * 60_000)
        if running.ends or running.relay._closed:
            break
    assert await running.end() == "flood"
    assert len(running.relay._outbox._bytes) < outbox.MOST_BYTES + 2 * 65_536


@pytest.mark.parametrize(
    "tiny",
    [b"\x21\x00", b"\x00\x01\x00", datagram(b"x"), capsule.encode_control("")],
    ids=["unknown", "empty", "one byte", "control"],
)
async def test_tiny_capsules_keep_no_other_stream_waiting(
    start: Start, wireguard: FakeWireGuard, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns of the loop are short (CPU time, so that a busy machine does not matter), and turns alternate."""
    turns = []
    original = Relay._on_readable

    def timed(relay: Relay) -> None:
        begin = time.thread_time()
        original(relay)
        turns.append(time.thread_time() - begin)

    monkeypatch.setattr(Relay, "_on_readable", timed)
    hostile, other = start(), start()

    async def send_for_ever() -> None:
        while True:
            await hostile.peer.send(tiny * (16_384 // len(tiny)))
            await asyncio.sleep(0)

    flood = asyncio.ensure_future(send_for_ever())
    for count in range(1, 6):
        wireguard.send(other.port.local_port, b"prompt")
        await other.peer.until_payloads(count)
    flood.cancel()
    without_the_garbage_collector = sorted(turns)[: -len(turns) // 10]
    assert max(without_the_garbage_collector) < 0.05 and len(turns) > 5
    assert hostile.relay._receiver.parser.parsed > 0


async def test_one_turn_is_bounded_and_there_is_one_per_round_of_the_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "CAPSULES_PER_TURN", 10)
    monkeypatch.setattr(receiver_module, "READ_BYTES", 20)
    running = start()
    for _ in range(50):
        await running.peer.send(capsule.encode_control("x") * 15)
    sizes = []
    while len(running.controls) < 750:
        before = len(running.controls)
        await asyncio.sleep(0)
        sizes.append(len(running.controls) - before)
    assert max(sizes) == 10
