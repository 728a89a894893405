"""Runs tests of other folders again on a real Debian kernel with WireGuard, in one boot of a virtual machine.

The machine's kernel brings what this one may lack: WireGuard, netem and all of nftables. Its output passes through while it
works. Needs root and Debian; scripts/kernel-vm fetches the rest.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]

#: Files whose tests say something about the kernel.
FILES = (
    "tests/contract/test_wireguard.py",
    "tests/contract/test_wireguard_traffic.py",
    "tests/contract/test_netstack.py",
    "tests/netns/test_netlink.py",
    "tests/netns/test_firewall.py",
    "tests/kernel/inside_tunnel.py",
    "tests/kernel/inside_sidecar.py",
)
#: Parameters of those tests that need no kernel, and were run outside already.
SELECTION = "not fake and not userspace"

LIMIT_S = 2700  # far more than an idle machine takes, because these are shared


@pytest.mark.timeout(LIMIT_S + 300)  # and the download of the kernel, once
def test_on_a_real_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(ROOT / "scripts/kernel-vm"), "-t", str(LIMIT_S), "--"]
    command += ["env", "RHIZOME_LAB_PATIENCE=8", sys.executable, "-m", "pytest", *FILES]
    command += ["-k", SELECTION, "-v", "--durations=5", "--color=no", "-p", "no:cacheprovider"]
    command += ["-o", "timeout=600"]  # everything takes 13 to 20 times as long
    said = []
    with (
        capsys.disabled(),
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        print()
        try:
            for line in process.stdout:
                print(f"  vm| {line.rstrip()}", flush=True)
                said.append(line)
        except BaseException:
            process.terminate()
            raise
    text = "".join(said)
    assert process.returncode == 0, f"scripts/kernel-vm ended with {process.returncode}"
    for file in FILES:
        ran = len(re.findall(rf"^{re.escape(file)}::\S+ PASSED", text, re.MULTILINE))
        assert ran, f"no test of {file} ran in the virtual machine"
