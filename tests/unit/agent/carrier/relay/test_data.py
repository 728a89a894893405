"""What goes through a relay over real sockets, by one stream or several on one port, and what it measures."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from agent.carrier import capsule, liveness, queue
from agent.carrier import relay as relay_module
from agent.carrier.capsule import Ack, Control, Pong
from agent.carrier.stats import RelayStats
from agent.errors import Unsupported
from tests.unit.agent.carrier.conftest import FakeWireGuard
from tests.unit.agent.carrier.relay.conftest import Start, datagram


async def test_datagrams_of_all_sizes_both_ways(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    sizes = [1, 0, 32, 148, 1452, 1452, 1452, 100, 9000, 16000, 1452, *random.Random(1).sample(range(2000), 100)]
    packets = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    wireguard.send(running.port.local_port, *packets)
    await running.peer.until(lambda: len(running.peer.payloads) == len(packets))
    assert running.peer.payloads == packets
    await running.peer.send(b"".join(map(datagram, packets)))
    assert await wireguard.until(len(packets)) == packets
    stats = running.relay.stats()
    assert (stats.tx_packets, stats.rx_packets) == (len(packets), len(packets))
    assert stats.tx_bytes == stats.rx_bytes == sum(sizes)
    assert stats.drops == () and running.port.stats() == RelayStats()


async def test_a_burst_arrives_in_order_and_each_record_is_full(
    start: Start, wireguard: FakeWireGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "CODEL_INTERVAL_S", 60.0)  # a machine at full load looks like a slow path
    monkeypatch.setattr(queue, "CAP_S", 60.0)
    running = start()
    packets = [n.to_bytes(4, "big") + bytes(1448) for n in range(600)]
    wireguard.send(running.port.local_port, *packets)
    await running.peer.until(lambda: len(running.peer.payloads) == 600)
    assert running.peer.payloads == packets
    running.peer.stream.setblocking(False)
    await running.peer.send(b"".join(map(datagram, packets)))
    assert await wireguard.until(600) == packets


async def test_a_datagram_too_large_for_us_is_dropped_and_counted(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    wireguard.send(running.port.local_port, bytes(16_001), bytes(60_000), b"behind")
    await running.peer.until(lambda: running.peer.payloads)
    assert running.peer.payloads == [b"behind"]
    large = b"\x00" + capsule.encode_varint(20_001) + b"\x00" + bytes(20_000)
    await running.peer.send(large + datagram(b"behind"))
    assert await wireguard.until(1) == [b"behind"]
    assert dict(running.relay.stats().drops) == {"oversize": 3}


async def test_what_was_read_with_the_http_head_comes_first(start: Start, wireguard: FakeWireGuard) -> None:
    whole = datagram(b"first") + capsule.encode_control("hello") + datagram(b"second")
    running = start(early=whole[:-3])
    await running.peer.send(whole[-3:] + datagram(b"third"))
    assert await wireguard.until(3) == [b"first", b"second", b"third"]
    assert running.controls == ["hello"]


async def test_control_messages_both_ways(start: Start) -> None:
    running = start()
    texts = ["", '{"type":"enroll"}', "ö" * (capsule.MAX_CONTROL_BYTES // 2)]
    for text in texts:
        running.relay.send_control(text)
    await running.peer.until(lambda: len(running.peer.of(Control)) == 3)
    assert running.peer.items == [Control(text) for text in texts]
    await running.peer.send(b"".join(map(capsule.encode_control, texts)))
    await running.peer.until(lambda: len(running.controls) == 3)
    assert running.controls == texts
    with pytest.raises(ValueError, match="at most 65536"):
        running.relay.send_control("x" * (capsule.MAX_CONTROL_BYTES + 1))


async def test_received_data_is_acknowledged_within_milliseconds(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    await running.peer.send(datagram(b"x" * 10))
    await running.peer.until(lambda: running.peer.items)
    assert running.peer.items == [Ack(10)]
    await running.peer.send(datagram(bytes(1000)) * 40)
    await wireguard.until(41)
    await running.peer.until(lambda: Ack(40_010) in running.peer.items)


async def test_a_ping_is_answered_behind_the_ack_for_what_came_before_it(start: Start) -> None:
    running = start()
    await running.peer.send(datagram(b"x" * 10) + capsule.encode_ping(b"01234567"))
    await running.peer.until(lambda: running.peer.of(Pong))
    assert running.peer.items == [Ack(10), Pong(b"01234567")]


async def test_a_round_trip_is_measured_at_the_start_and_with_traffic(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    await running.peer.until(lambda: running.relay.stats().rtt_s)
    at_start = running.relay.stats().rtt_s
    assert at_start is not None
    running.peer.acks = False
    wireguard.send(running.port.local_port, bytes(100))
    await running.peer.until(lambda: running.peer.payloads)
    await asyncio.sleep(0.2)
    await running.peer.send(capsule.encode_ack(100))
    await running.peer.until(lambda: running.relay.stats().queue_delay_s is not None)
    stats = running.relay.stats()
    assert stats.queue_delay_s is not None
    assert at_start < 0.1 < stats.queue_delay_s < 1
    assert stats.rtt_s == pytest.approx(at_start + stats.queue_delay_s / 8, abs=0.02)


async def test_a_peer_without_extensions_gets_datagram_capsules_only(
    start: Start, wireguard: FakeWireGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PASSIVE_QUIET_S", 0.01)
    monkeypatch.setattr(liveness, "IMPATIENT_S", 0.01)
    running = start(extensions=False)
    running.peer.acks = False
    ours = capsule.encode_ping(bytes(8)) + capsule.encode_control("x") + capsule.encode_ack(10**9)
    await running.peer.send(ours + datagram(bytes(1400)) * 50)
    await wireguard.until(50)
    wireguard.send(running.port.local_port, *[bytes(1400)] * 200)
    await running.peer.until(lambda: len(running.peer.payloads) == 200)
    await asyncio.sleep(0.1)
    running.peer.read()
    assert running.peer.raw == datagram(bytes(1400)) * 200
    assert running.controls == [] and running.ends == []
    with pytest.raises(Unsupported):
        running.relay.send_control("x")


async def test_make_before_break(start: Start, wireguard: FakeWireGuard) -> None:
    old = start()
    wireguard.send(old.port.local_port, b"one")
    await old.peer.until(lambda: old.peer.payloads)
    new = start(port=old.port)
    old.relay.retire(0.2)
    wireguard.send(old.port.local_port, b"two")
    await new.peer.until(lambda: new.peer.payloads)
    await old.peer.send(datagram(b"late"))
    await new.peer.send(datagram(b"new"))
    assert sorted(await wireguard.until(2)) == [b"late", b"new"]
    assert await old.end() == "retired"
    wireguard.send(old.port.local_port, b"three")
    await new.peer.until(lambda: len(new.peer.payloads) == 2)
    assert (old.peer.payloads, new.peer.payloads) == ([b"one"], [b"two", b"three"])


async def test_without_a_stream_only_the_newest_initiation_is_kept(start: Start, wireguard: FakeWireGuard) -> None:
    first = start()
    first.relay.close("test")
    initiations = [b"\x01\0\0\0" + bytes([n]) * 144 for n in range(3)]
    wireguard.send(first.port.local_port, b"data", initiations[0], initiations[1], b"more", initiations[2])
    await asyncio.sleep(0.02)
    second = start(port=first.port)
    await second.peer.until(lambda: second.peer.payloads)
    assert second.peer.payloads == [initiations[2]]
    assert first.port.stats().drops == (("no_stream", 4),)


async def test_wireguard_may_be_down_for_a_while(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    wireguard.sock.close()
    for count in (1, 2, 3):
        await running.peer.send(datagram(b"lost"))
        await running.until_received(count)
        await asyncio.sleep(0.01)
    again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    again.bind(("127.0.0.1", wireguard.port))
    wireguard.sock = again
    await running.peer.send(datagram(b"arrives"))
    assert await wireguard.until(1) == [b"arrives"]
    wireguard.send(running.port.local_port, b"back")
    await running.peer.until(lambda: running.peer.payloads)
    assert not running.ends


async def test_a_byte_at_a_time(start: Start, wireguard: FakeWireGuard) -> None:
    running = start()
    for byte in datagram(b"slow") + capsule.encode_control("slow"):
        await running.peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await wireguard.until(1) == [b"slow"]
    await running.peer.until(lambda: running.controls)
