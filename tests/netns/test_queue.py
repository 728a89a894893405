"""The queue under load: short for everybody, and a flow that is stuck stops no other."""

from __future__ import annotations

import pytest

from benchmarks.queue import line, loaded, stuck_flows

pytestmark = pytest.mark.netns


def test_a_probe_is_answered_quickly_beside_a_bulk_transfer_through_envoy() -> None:
    """A queue of 100 packets in front of 50 Mbit/s alone is 24 ms; the proxy's send buffer without our window 200 and more."""
    with line(loss=0.0) as lab:
        for download in (True, False):
            seen = loaded(lab, download=download, rounds=1, seconds=6)
            assert seen.mbit_s > 25
            assert seen.rtt_p50_ms < 120


def test_connections_on_which_nobody_reads_slow_no_other() -> None:
    with line(loss=0.0) as lab, stuck_flows(lab, 4):
        seen = loaded(lab, download=True, rounds=1, seconds=4)
        assert seen.mbit_s > 25
        assert seen.rtt_p50_ms < 120
