"""Inside the virtual machine: steps its clock under traffic. python -m benchmarks._clock: one JSON object per figure."""

from __future__ import annotations

import subprocess
import time

from benchmarks.figure import Figure
from lab import addresses
from lab.faults import Scene
from lab.lab import Lab

#: By how much, and how long it is watched then. After a step back WireGuard refuses the client's next handshake, which comes
#: within two minutes, as older than the last one; a minute later the session ends, and the server has to begin the next.
STEPS = {"forward": (3600, 60.0), "back": (-7200, 240.0)}


def main() -> None:
    with Lab("haproxy-sni") as lab:
        Scene.start(lab)
        for name, (step_s, watch_s) in STEPS.items():
            with lab.seed.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=20) as probe:
                time.sleep(1)
                subprocess.run(["date", "-s", f"@{int(time.time()) + step_s}"], check=True, capture_output=True)
                begin = time.monotonic()
                while time.monotonic() < begin + watch_s:
                    time.sleep(1)
            report = probe.report
            note = f"clock stepped by {step_s} s; {report.lost} of {report.sent} questions lost in {watch_s:.0f} s"
            print(Figure(f"outage.clock_{name}_s", report.outage_s, "s", note=note).to_json(), flush=True)


if __name__ == "__main__":
    main()
