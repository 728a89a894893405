"""The queue under load: short for everybody, and a flow that is stuck stops no other."""

from __future__ import annotations

import pytest

from benchmarks.queue import line, loaded, stuck_flows

pytestmark = pytest.mark.netns


#: Without our window the proxy's send buffer alone is 200 to 300 ms; the path is 40.
MOST_MS = 180
ROUNDS, SECONDS = 2, 6.0


@pytest.mark.parametrize("download", [True, False], ids=["download", "upload"])
def test_a_probe_is_answered_quickly_beside_a_bulk_transfer_through_envoy(download: bool) -> None:
    with line(loss=0.0) as lab:
        seen = loaded(lab, download=download, rounds=ROUNDS, seconds=SECONDS)
        assert seen.mbit_s > 25
        assert seen.rtt_p50_ms < MOST_MS


def test_connections_on_which_nobody_reads_slow_no_other() -> None:
    with line(loss=0.0) as lab, stuck_flows(lab, 4):
        seen = loaded(lab, download=True, rounds=ROUNDS, seconds=SECONDS)
        assert seen.mbit_s > 25
        assert seen.rtt_p50_ms < MOST_MS
