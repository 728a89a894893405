"""iperf3 between two machines of the lab."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lab.namespaces import Machine
from lab.processes import LabError, wait_until


@dataclass(frozen=True, slots=True)
class Throughput:
    """What the receiver got. `retransmits` counts TCP segments, `lost_share` is of UDP datagrams; 0 for the other."""

    mbit_s: float
    seconds: float
    retransmits: int
    lost_share: float


def iperf(
    client: Machine,
    server: Machine,
    address: str,
    *,
    seconds: float = 5.0,
    streams: int = 1,
    download: bool = False,
    udp_mbit: float | None = None,
    congestion: str | None = None,
) -> Throughput:
    """Run one test to `address`, which is the server's. `download`: the server sends. `udp_mbit`: UDP at this rate.

    `congestion` is the sender's TCP congestion control, None for the machine's own. Raises LabError when it fails.
    """
    name = f"iperf3-{len(server.processes)}"
    listening = server.spawn(["iperf3", "--server", "--one-off", "--forceflush"], name=name)
    wait_until(lambda: "listening" in listening.output(), "iperf3 listening")
    options = ["--json", "--time", f"{seconds:g}", "--parallel", str(streams)]
    options += ["--reverse"] if download else []
    options += ["--udp", "--bandwidth", f"{udp_mbit / streams}M"] if udp_mbit is not None else []
    options += ["--congestion", congestion] if congestion is not None else []
    try:
        done = client.run(["iperf3", "--client", address, *options], check=False, timeout_s=seconds + 30)
        if done.returncode:
            raise LabError(f"iperf3 to {address}: {json.loads(done.stdout).get('error', done.stderr)}")
    finally:
        listening.stop()
    end = json.loads(done.stdout)["end"]
    received = end["sum" if udp_mbit is not None else "sum_received"]
    mbit_s, elapsed_s = received["bits_per_second"] / 1e6, received["seconds"]
    if udp_mbit is None:
        return Throughput(mbit_s, elapsed_s, end["sum_sent"].get("retransmits", 0), 0.0)
    lost_share = received["lost_percent"] / 100
    return Throughput(mbit_s * (1 - lost_share), elapsed_s, 0, lost_share)
