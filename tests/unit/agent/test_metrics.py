"""The metrics page: what Prometheus's own parser makes of it."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import PEER_SERIES_MAX, PREFIX_REASONS, exposition
from agent.status import Counters, EgressHealth, PathHealth, PeerHealth, PoolHealth, RangeHealth, RoleStatus, Verdict

STATUS = RoleStatus(
    "seed-server",
    "a",
    "rz-seed",
    Verdict.DEGRADED,
    "half",
    12.5,
    version="0.1.0",
    backend="kernel",
    paths=(PathHealth("stream", 'CONNECT "p":1', "up", rtt_s=0.02, rx_bytes=7, drops=(("codel", 3), ("full", 1))),),
    peers=(
        PeerHealth("n1", prefixes=("10.0.0.0/24",), canary_age_s=0.5, tx_bytes=9, standing="well"),
        PeerHealth("n2", standing="lost"),
    ),
    ranges=(RangeHealth("10.0.0.0/16", "node", "n1"), RangeHealth("100.64.0.0/13", "service")),
    counters=Counters(
        refused=(("default-route", 2),),
        not_let_in=(("revoked", 3),),
        turned_away=(("tls", 5),),
        repairs=(("AddRoute", 1),),
        reconnects=4,
        failovers=(("silent", 1),),
        moves=16,
        rotations=(("done", 1),),
    ),
    key_age_s=60.0,
    rotation="WireGuard's keys are being replaced",
    grant_expires_in_s=1800.0,
    pools=(PoolHealth("192.168.128.0/17", 32000, 3, 2, 1),),
)


def samples(status: RoleStatus) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(exposition(status).decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} twice: Prometheus refuses the page"
            found[key] = sample.value
    return found


def test_the_page_says_what_the_status_says() -> None:
    got = samples(STATUS)
    stream = ("transport", "stream")
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("rhizome_build_info", (("backend", "kernel"), ("control_plane", "a"), ("ifname", "rz-seed"), ("role", "seed-server"), ("version", "0.1.0"))): 1,
        ("rhizome_ready", ()): 1,
        ("rhizome_verdict", (("verdict", "UP"),)): 0,
        ("rhizome_verdict", (("verdict", "DEGRADED"),)): 1,
        ("rhizome_verdict", (("verdict", "DOWN"),)): 0,
        ("rhizome_verdict_age_seconds", ()): 12.5,
        ("rhizome_path_up", (stream, ("via", 'CONNECT "p":1'))): 1,
        ("rhizome_path_in_use", (stream,)): 1,
        ("rhizome_path_rtt_seconds", (stream,)): 0.02,
        ("rhizome_path_receive_bytes_total", (stream,)): 7,
        ("rhizome_path_transmit_bytes_total", (stream,)): 0,
        ("rhizome_path_drops_total", (("reason", "codel"), stream)): 3,
        ("rhizome_path_drops_total", (("reason", "full"), stream)): 1,
        ("rhizome_peers", (("state", "answering"),)): 1,
        ("rhizome_peers", (("state", "silent"),)): 1,
        ("rhizome_peer_canary_age_seconds", (("peer", "n1"),)): 0.5,
        ("rhizome_peer_prefixes", (("peer", "n1"),)): 1,
        ("rhizome_peer_prefixes", (("peer", "n2"),)): 0,
        ("rhizome_peer_receive_bytes_total", (("peer", "n1"),)): 0,
        ("rhizome_peer_receive_bytes_total", (("peer", "n2"),)): 0,
        ("rhizome_peer_transmit_bytes_total", (("peer", "n1"),)): 9,
        ("rhizome_peer_transmit_bytes_total", (("peer", "n2"),)): 0,
        ("rhizome_ranges", (("state", "carried"),)): 1,
        ("rhizome_ranges", (("state", "uncarried"),)): 1,
        ("rhizome_prefixes_refused_total", (("reason", "default-route"),)): 2,
        **{("rhizome_prefixes_refused_total", (("reason", word),)): 0 for word in PREFIX_REASONS if word != "default-route"},
        ("rhizome_clients_refused_total", (("reason", "revoked"),)): 3,
        ("rhizome_connections_turned_away_total", (("cause", "tls"),)): 5,
        ("rhizome_wireguard_key_rotations_total", (("result", "done"),)): 1,
        ("rhizome_wireguard_key_rotations_total", (("result", "forced"),)): 0,
        ("rhizome_wireguard_key_rotations_total", (("result", "failed"),)): 0,
        ("rhizome_wireguard_key_age_seconds", ()): 60,
        ("rhizome_wireguard_key_rotating", ()): 1,
        ("rhizome_repairs_total", (("step", "AddRoute"),)): 1,
        ("rhizome_reconnects_total", ()): 4,
        ("rhizome_path_moves_total", ()): 0,
        ("rhizome_identity_conflicts_total", ()): 0,
        ("rhizome_failovers_total", (("cause", "silent"),)): 1,
        ("rhizome_failovers_total", (("cause", "stream"),)): 0,
        ("rhizome_prefix_moves_total", ()): 16,
        ("rhizome_clients", (("standing", "well"),)): 1,
        ("rhizome_clients", (("standing", "unproven"),)): 0,
        ("rhizome_clients", (("standing", "lost"),)): 1,
        ("rhizome_grant_expires_in_seconds", ()): 1800,
        ("rhizome_ipam_pool_size", (("pool", "192.168.128.0/17"),)): 32000,
        ("rhizome_ipam_pool_used", (("pool", "192.168.128.0/17"),)): 3,
        ("rhizome_ipam_pool_quarantined", (("pool", "192.168.128.0/17"),)): 2,
        ("rhizome_ipam_pool_orphaned", (("pool", "192.168.128.0/17"),)): 1,
    }  # fmt: skip
    assert {key: value for key, value in got.items() if key[0].startswith("rhizome_")} == expected
    assert got["process_resident_memory_bytes", ()] > 1e6


def test_down_is_not_ready() -> None:
    assert samples(replace(STATUS, verdict=Verdict.DOWN))["rhizome_ready", ()] == 0


def test_the_number_of_series_is_bounded() -> None:
    many = replace(STATUS, peers=tuple(PeerHealth(f"n{i}", canary_age_s=0.1) for i in range(PEER_SERIES_MAX + 1)))
    got = samples(many)
    assert got["rhizome_peers", (("state", "answering"),)] == PEER_SERIES_MAX + 1
    assert not [key for key in got if key[0].startswith("rhizome_peer_")]
    assert len(got) < 100


def test_names_that_come_twice_do_not_break_the_page() -> None:
    twice = replace(STATUS, peers=STATUS.peers * 2, paths=STATUS.paths * 2)
    assert samples(twice)["rhizome_peer_prefixes", (("peer", "n1"),)] == 1


def test_the_egress_proxys_numbers() -> None:
    egress = EgressHealth(
        ("[::]:9443",),
        open=3,
        heads=1,
        dials=(("dial ok", 2), ("policy outside", 1)),
        latency=(("0.001", 1), ("0.005", 1), ("inf", 0)),
        latency_sum_s=0.004,
        up_bytes=10,
        down_bytes=20,
    )
    got = samples(replace(STATUS, egress=egress))
    assert got["rhizome_egress_connections", (("state", "open"),)] == 3
    assert got["rhizome_egress_dials_total", (("result", "outside"), ("stage", "policy"))] == 1
    assert got["rhizome_egress_bytes_total", (("direction", "down"),)] == 20
    assert [got["rhizome_egress_dial_seconds_bucket", (("le", le),)] for le in ("0.001", "0.005", "+Inf")] == [1, 2, 2]
    assert got["rhizome_egress_dial_seconds_count", ()] == 2
    assert got["rhizome_egress_dial_seconds_sum", ()] == 0.004
    assert not any("egress" in name for name, _ in samples(STATUS))
